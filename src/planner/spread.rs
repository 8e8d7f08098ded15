//! An order in which any beginning of a list is spread over it.

/// The members of `members`, each once, in an order whose first k are spread over the
/// list for every k: the bit-reversal permutation. Since the first k are among the first
/// k + 1, a plan with a little less memory takes layers away and moves none.
pub fn spread(members: &[usize]) -> impl Iterator<Item = usize> {
    let width = members.len().next_power_of_two();
    let bits = width.trailing_zeros();
    (0..width)
        .map(move |index| {
            if bits == 0 {
                0
            } else {
                index.reverse_bits() >> (usize::BITS - bits)
            }
        })
        .filter_map(|index| members.get(index).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_comes_once() {
        for count in 0..40 {
            let members: Vec<usize> = (100..100 + count).collect();
            let mut order: Vec<usize> = spread(&members).collect();
            order.sort_unstable();
            assert_eq!(order, members);
        }
    }

    #[test]
    fn a_beginning_leaves_no_long_gap() {
        let members: Vec<usize> = (0..32).collect();
        for count in 1..32 {
            let mut first: Vec<usize> = spread(&members).take(count).collect();
            first.sort_unstable();
            let longest = first
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .max()
                .unwrap_or(0);
            assert!(longest <= 2 * 32usize.div_ceil(count), "{first:?}");
        }
    }
}
