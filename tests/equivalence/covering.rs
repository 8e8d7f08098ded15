//! A selection of cases in which every two settings meet, instead of all combinations.

/// Cases over axes of the given sizes: each case has one index per axis, and for any two
/// axes every pair of their indices occurs in some case. Greedy, so not the fewest.
pub fn pairwise(sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut open = Vec::new();
    for first in 0..sizes.len() {
        for second in first + 1..sizes.len() {
            for a in 0..sizes[first] {
                open.extend((0..sizes[second]).map(|b| ((first, a), (second, b))));
            }
        }
    }
    let mut cases = Vec::new();
    while let Some(seed) = open.first().copied() {
        let mut case: Vec<Option<usize>> = vec![None; sizes.len()];
        case[seed.0.0] = Some(seed.0.1);
        case[seed.1.0] = Some(seed.1.1);
        for axis in 0..sizes.len() {
            if case[axis].is_some() {
                continue;
            }
            // The value that meets most of the open pairs; of equals, one that turns with
            // the cases, so that what is left free is varied too.
            let gain = |value: usize| {
                let with = |(other, index): (usize, usize)| case[other] == Some(index);
                let new = (axis, value);
                open.iter()
                    .filter(|(a, b)| *a == new && with(*b) || *b == new && with(*a))
                    .count()
            };
            let turn =
                |value: usize| (value + sizes[axis] - cases.len() % sizes[axis]) % sizes[axis];
            case[axis] = (0..sizes[axis]).max_by_key(|value| (gain(*value), turn(*value)));
        }
        let case: Vec<usize> = case.into_iter().map(Option::unwrap).collect();
        open.retain(|((first, a), (second, b))| case[*first] != *a || case[*second] != *b);
        cases.push(case);
    }
    cases
}

/// All combinations of indices over axes of the given sizes.
pub fn product(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![Vec::new()], |cases, size| {
        let grown = |case: &Vec<usize>| {
            let case = case.clone();
            (0..*size).map(move |value| [case.as_slice(), &[value]].concat())
        };
        cases.iter().flat_map(grown).collect()
    })
}

#[test]
fn any_two_settings_meet_in_few_cases() {
    let sizes = [5, 2, 3, 3, 2, 3, 2, 2];
    let cases = pairwise(&sizes);
    for first in 0..sizes.len() {
        for second in first + 1..sizes.len() {
            for pair in product(&[sizes[first], sizes[second]]) {
                let meets = |case: &Vec<usize>| case[first] == pair[0] && case[second] == pair[1];
                assert!(
                    cases.iter().any(meets),
                    "axes {first}, {second}: {pair:?} is missing"
                );
            }
        }
    }
    assert!(cases.len() <= 24, "{} cases", cases.len());
}
