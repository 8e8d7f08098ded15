//! Lists and ranges as llama-bench reads them: `1,2,4`, `1-10`, `1-10+2`, `1-16*2`.

/// Numbers that one list may spell out; more is a typing error.
const NUMBERS_MAX: usize = 10_000;

/// Numbers, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(pub Vec<i32>);

/// Two numbers, as in `-pg 512,128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(pub i32, pub i32);

/// Reads numbers from 0 on.
///
/// # Errors
/// A sentence that says what is accepted.
pub fn numbers(text: &str) -> Result<Numbers, String> {
    read(text, false)
}

/// Reads numbers, of which the first of a range may be negative.
///
/// # Errors
/// As [`numbers`].
pub fn signed_numbers(text: &str) -> Result<Numbers, String> {
    read(text, true)
}

/// Reads two numbers.
///
/// # Errors
/// A sentence that says what is accepted.
pub fn pair(text: &str) -> Result<Pair, String> {
    let number = |text: &str| text.parse().ok().filter(|number: &i32| *number >= 0);
    let two = text.split_once(',');
    let two = two.and_then(|(left, right)| Some(Pair(number(left)?, number(right)?)));
    two.ok_or_else(|| "give two numbers of tokens, as in '512,128'".to_owned())
}

fn read(text: &str, signed: bool) -> Result<Numbers, String> {
    let mut all = Vec::new();
    // llama-bench lets a list end in a comma.
    let list = text.strip_suffix(',').unwrap_or(text);
    for part in list.split(',') {
        range(part, signed, &mut all)?;
    }
    Ok(Numbers(all))
}

fn range(text: &str, signed: bool, all: &mut Vec<i32>) -> Result<(), String> {
    let wrong = || {
        "give numbers and ranges, as in '1,2,4', '1-10', '1-10+2' (every second) or '1-16*2' \
         (doubling)"
            .to_owned()
    };
    let number = |text: &str| -> Result<i32, String> {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let value = is_plain.then(|| text.parse().ok()).flatten();
        value.ok_or_else(wrong)
    };
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) if signed => (true, rest),
        _ => (false, text),
    };
    let (first, rest) = rest
        .split_once('-')
        .map_or((rest, None), |(a, b)| (a, Some(b)));
    let first = number(first)? * if negative { -1 } else { 1 };
    let Some(rest) = rest else {
        all.push(first);
        return Ok(());
    };
    let at = rest.find(['+', '*']);
    let (last, step) = at.map_or((rest, None), |at| (&rest[..at], Some(rest.split_at(at).1)));
    let last = number(last)?;
    let multiplies = step.is_some_and(|step| step.starts_with('*'));
    let step = step.map_or(Ok(1), |step| number(&step[1..]))?;
    let mut value = first;
    while value <= last {
        all.push(value);
        let next = if multiplies {
            value.checked_mul(step)
        } else {
            value.checked_add(step)
        };
        match next {
            None => break,
            Some(next) if next <= value => {
                return Err(format!("the range '{text}' never ends"));
            }
            Some(next) => value = next,
        }
        if all.len() > NUMBERS_MAX {
            return Err(format!("more than {NUMBERS_MAX} numbers"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_llama_bench_documents() {
        for (text, expected) in [
            ("5", vec![5]),
            ("1,2,4", vec![1, 2, 4]),
            ("16,", vec![16]),
            ("1-4", vec![1, 2, 3, 4]),
            ("1-10+2", vec![1, 3, 5, 7, 9]),
            ("1-16*2", vec![1, 2, 4, 8, 16]),
            ("1-20*3", vec![1, 3, 9]),
            ("7-7", vec![7]),
            ("0,8-10,64", vec![0, 8, 9, 10, 64]),
            ("9-3", vec![]),
        ] {
            assert_eq!(numbers(text), Ok(Numbers(expected)), "{text}");
        }
        assert_eq!(signed_numbers("-1,99"), Ok(Numbers(vec![-1, 99])));
        assert_eq!(signed_numbers("-1-2"), Ok(Numbers(vec![-1, 0, 1, 2])));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            ",",
            "a",
            "1-",
            "-",
            "1-2+",
            "1-2/2",
            "1-4+0",
            "1-4*1",
            "0-4*2",
            "1.5",
            "1 2",
            "99999999999",
            "1,,2",
            "1-99999",
            "+1",
        ] {
            assert!(numbers(text).is_err(), "{text}");
        }
        assert!(numbers("-1").is_err());
    }

    #[test]
    fn a_range_to_the_largest_number_ends() {
        let largest = i32::MAX - 1;
        let text = format!("{largest}-{}", i32::MAX);
        assert_eq!(numbers(&text), Ok(Numbers(vec![largest, i32::MAX])));
    }

    #[test]
    fn pairs_are_two_numbers() {
        assert_eq!(pair("512,128"), Ok(Pair(512, 128)));
        for text in ["512", "1,2,3", ",", "-1,2", "a,b", ""] {
            assert!(pair(text).is_err(), "{text}");
        }
    }
}
