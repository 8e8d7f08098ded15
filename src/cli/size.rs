//! Sizes as users write them: `512`, `1.5G`, `300MB`, `50%`.

use std::io::Read;
use std::path::Path;

use crate::device::Budget;
use crate::error::{Error, Result};

const UNITS: &[(&str, f64)] = &[
    ("", 1024.0 * 1024.0),
    ("b", 1.0),
    ("k", 1024.0),
    ("kib", 1024.0),
    ("kb", 1e3),
    ("m", 1024.0 * 1024.0),
    ("mib", 1024.0 * 1024.0),
    ("mb", 1e6),
    ("g", 1024.0 * 1024.0 * 1024.0),
    ("gib", 1024.0 * 1024.0 * 1024.0),
    ("gb", 1e9),
    ("t", 1024.0 * 1024.0 * 1024.0 * 1024.0),
    ("tib", 1024.0 * 1024.0 * 1024.0 * 1024.0),
    ("tb", 1e12),
];

/// Bytes that a float still counts one by one; more is a typing error.
const BYTES_MAX: f64 = (1_u64 << 53) as f64;

/// Reads a budget: a number of MiB, a number with a unit, a share of the model in
/// percent, or `auto`.
///
/// # Errors
/// A sentence that says what is accepted.
pub fn parse_budget(text: &str) -> std::result::Result<Budget, String> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("auto") {
        return Ok(Budget::Auto);
    }
    let digits = trimmed
        .find(|letter: char| !(letter.is_ascii_digit() || matches!(letter, '.' | '+' | '-')))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| {
        "a size is a number of MiB, or has a unit as in '512M', '1.5GiB' or '50%'".to_owned()
    })?;
    if number <= 0.0 {
        return Err("a size must be more than zero".to_owned());
    }
    let unit = unit.trim().to_ascii_lowercase();
    if unit == "%" {
        return Ok(Budget::ModelShare(number / 100.0));
    }
    let factor = UNITS
        .iter()
        .find_map(|(name, factor)| (*name == unit).then_some(*factor))
        .ok_or_else(|| format!("unknown unit '{unit}'; known are K, M, G, T, KiB .. TiB and %"))?;
    let bytes = (number * factor).round();
    if !(1.0..=BYTES_MAX).contains(&bytes) {
        return Err("a size must be between 1 byte and 8 PiB".to_owned());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole, and between 1 and 2^53, as just tested"
    )]
    Ok(Budget::Bytes(bytes as u64))
}

/// Bytes that a file with a budget may have; more is another file.
const BUDGET_FILE_BYTES_MAX: u64 = 4096;

/// Reads the budget in the file at `path`; blanks and line ends round it do not matter.
///
/// # Errors
/// `Failed` when the file cannot be read, `Usage` when it holds no budget.
pub fn read_budget(path: &Path) -> Result<Budget> {
    let name = path.display();
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(BUDGET_FILE_BYTES_MAX).read_to_end(&mut text))
        .map_err(|error| {
            Error::Failed(format!(
                "could not read the budget in '{name}': {error}; see --vram-budget-file"
            ))
        })?;
    let text = String::from_utf8_lossy(&text);
    parse_budget(&text).map_err(|reason| {
        let shown: String = text.trim().chars().take(40).collect();
        let shown = shown.escape_debug();
        Error::Usage(format!(
            "--vram-budget-file '{name}' holds '{shown}': {reason}"
        ))
    })
}

/// A size for people: three digits and a binary unit.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn show_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            let digits = if unit == "B" || value >= 100.0 {
                0
            } else {
                usize::from(value < 10.0) + 1
            };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_as_written() {
        let mib = 1024 * 1024;
        for (text, bytes) in [
            ("512", 512 * mib),
            (" 1 ", mib),
            ("1K", 1024),
            ("2kib", 2048),
            ("3kb", 3000),
            ("1.5G", 1536 * mib),
            ("1.5 GiB", 1536 * mib),
            ("7MB", 7_000_000),
            ("0.5", mib / 2),
            ("100b", 100),
            ("1T", 1024 * 1024 * mib),
        ] {
            assert_eq!(parse_budget(text), Ok(Budget::Bytes(bytes)), "{text}");
        }
        assert_eq!(parse_budget("50%"), Ok(Budget::ModelShare(0.5)));
        assert_eq!(parse_budget("12.5 %"), Ok(Budget::ModelShare(0.125)));
        assert_eq!(parse_budget("Auto"), Ok(Budget::Auto));
    }

    #[test]
    fn senseless_budgets_are_refused() {
        for text in [
            "", "0", "-1", "0%", "-5%", "abc", "1X", "1e9", "M", "--", "inf", "NaN", "9e99",
        ] {
            assert!(parse_budget(text).is_err(), "{text}");
        }
        assert!(parse_budget(&"9".repeat(40)).is_err());
    }

    #[test]
    fn a_budget_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_budget(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read(" 2K \n"), Ok(Budget::Bytes(2048)));
        assert_eq!(read("50 %\r\n"), Ok(Budget::ModelShare(0.5)));
        for text in ["", "lots", "1 2", "0"] {
            let sentence = read(text).unwrap_err();
            assert!(
                sentence.contains("--vram-budget-file") && sentence.contains(text),
                "{sentence}"
            );
        }
        let sentence = read("a\x1b[31m\nb").unwrap_err();
        assert!(sentence.contains("'a\\u{1b}[31m\\nb'"), "{sentence}");
        let missing = read_budget(&folder.path().join("none")).unwrap_err();
        assert!(matches!(missing, Error::Failed(_)), "{missing}");
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        assert_eq!(show_bytes(5), "5 B");
        assert_eq!(show_bytes(2_677_312), "2.55 MiB");
        assert_eq!(show_bytes(150 * 1024 * 1024), "150 MiB");
        assert_eq!(show_bytes(1000 * 1024 * 1024), "0.98 GiB");
    }
}
