//! Choosing k of n, evenly spaced.

/// `count` members of `members`, as evenly spaced as whole indices allow.
///
/// # Panics
/// When `count` exceeds the number of members.
pub fn evenly_spaced(count: usize, members: &[usize]) -> impl Iterator<Item = usize> {
    assert!(
        count <= members.len(),
        "cannot choose {count} of {}",
        members.len()
    );
    (0..count).map(move |rank| members[rank * members.len() / count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_distinct_members_with_equal_gaps() {
        let members: Vec<usize> = (0..10).collect();
        for count in 0..=10 {
            let chosen: Vec<usize> = evenly_spaced(count, &members).collect();
            assert_eq!(chosen.len(), count);
            assert!(
                chosen.windows(2).all(|pair| pair[0] < pair[1]),
                "{chosen:?}"
            );
        }
        assert_eq!(
            evenly_spaced(5, &members).collect::<Vec<_>>(),
            [0, 2, 4, 6, 8]
        );
    }
}
