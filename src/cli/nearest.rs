//! What somebody may have meant who typed something else.

/// How alike two words must be, 0 to 1, for one to be taken for the other.
const LIKENESS_MIN: f64 = 0.6;

/// The candidate that is most like `word`, if one is like it at all. One that begins with
/// the whole word or that the word begins with, or differs only in capitals, counts as very
/// like it.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = word.to_lowercase();
    let likeness = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let alike = strsim::normalized_damerau_levenshtein(&typed, &candidate);
        let begins = (typed.len() >= 2 && candidate.starts_with(&typed))
            || (candidate.len() >= 4 && typed.starts_with(&candidate));
        alike + if begins { LIKENESS_MIN } else { 0.0 }
    };
    let rated = candidates
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate));
    // The first of equals: what is listed first is more usual.
    let best = rated.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_met_with_the_most_alike() {
        let types = ["f32", "f16", "q8_0", "q4_0", "q4_1"];
        assert_eq!(nearest("q8", types), Some("q8_0"));
        assert_eq!(nearest("q8-0", types), Some("q8_0"));
        assert_eq!(nearest("Q4_1", types), Some("q4_1"));
        assert_eq!(nearest("autoauto", ["on", "auto"]), Some("auto"));
        assert_eq!(nearest("of", ["on", "off", "auto"]), Some("off"));
        assert_eq!(nearest("xyz", types), None);
        assert_eq!(nearest("x", []), None);
    }
}
