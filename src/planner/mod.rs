//! From sizes and limits to a plan: which groups of tensors stay in the arena, which
//! are streamed through its ring. Pure functions over values.
//!
//! A *group* is what travels together: the weights and the KV cache of one layer. The
//! plan is kept by group here, but [`Placement`] belongs to a tensor everywhere else,
//! so that a finer plan changes this module alone.

mod spread;

use spread::evenly_spaced;

/// Slots of the ring: one is computed on while the other is filled.
pub const RING_SLOTS: usize = 2;

/// Where the bytes of a tensor are between two uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the arena, always.
    Resident,
    /// In the backing store; in a ring slot while a segment uses it.
    Streamed,
}

/// What the planner knows of one group, in the order in which a pass uses the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSize {
    /// Bytes of the group's weights and states, padded as the arena holds them.
    pub bytes: u64,
    /// Cannot be streamed: its tensors are used all over the graph.
    pub pinned: bool,
}

/// What a plan must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the arena.
    pub budget_bytes: u64,
    /// Upper bound on resident groups that are not pinned; None: as many as fit.
    pub resident_groups_max: Option<u32>,
}

/// The plan: a placement for each group, and the ring that the streamed ones need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// By group, in the order given.
    pub placements: Vec<Placement>,
    /// Bytes of each ring slot; 0 where no group uses the slot.
    pub slot_bytes: [u64; RING_SLOTS],
    /// Bytes of the resident groups.
    pub resident_bytes: u64,
    /// Bytes of the streamed groups: what one pass moves through the ring.
    pub streamed_bytes: u64,
}

/// The budget cannot hold even the smallest plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The smallest budget that works, in bytes.
    pub minimum_bytes: u64,
    /// The ring's share of it.
    pub ring_bytes: u64,
    /// What must stay resident in any plan.
    pub pinned_bytes: u64,
}

/// The ring slot that a streamed group lives in: always the same for a given plan, so
/// that addresses repeat from pass to pass. `rank` counts streamed groups alone.
pub fn home_slot(rank: usize) -> usize {
    rank % RING_SLOTS
}

impl Plan {
    /// Bytes of the arena that the plan takes.
    pub fn arena_bytes(&self) -> u64 {
        self.resident_bytes + self.slot_bytes.iter().sum::<u64>()
    }

    /// The plan in which exactly the groups marked in `resident` stay.
    fn of(groups: &[GroupSize], resident: &[bool]) -> Self {
        let mut plan = Self {
            placements: Vec::with_capacity(groups.len()),
            slot_bytes: [0; RING_SLOTS],
            resident_bytes: 0,
            streamed_bytes: 0,
        };
        let mut rank = 0;
        for (group, &stays) in groups.iter().zip(resident) {
            if stays || group.pinned || group.bytes == 0 {
                plan.placements.push(Placement::Resident);
                plan.resident_bytes += group.bytes;
            } else {
                plan.placements.push(Placement::Streamed);
                plan.streamed_bytes += group.bytes;
                let slot = &mut plan.slot_bytes[home_slot(rank)];
                *slot = (*slot).max(group.bytes);
                rank += 1;
            }
        }
        plan
    }
}

/// Plans greedily: everything streams at first; then, from the largest groups to the
/// smallest, as many of each size stay as fit, evenly spaced over the pass, so that the
/// time of a resident layer hides the copy of the streamed one behind it. The largest
/// come first because the ring shrinks with the largest group that streams.
///
/// # Errors
/// [`Shortfall`] when no plan fits the budget.
pub fn plan(groups: &[GroupSize], limits: &Limits) -> Result<Plan, Shortfall> {
    let everything = vec![true; groups.len()];
    let loose = groups
        .iter()
        .filter(|group| !group.pinned && group.bytes > 0)
        .count();
    let count_max = limits
        .resident_groups_max
        .map_or(loose, |max| loose.min(max as usize));
    if count_max == loose {
        let plan = Plan::of(groups, &everything);
        if plan.arena_bytes() <= limits.budget_bytes {
            return Ok(plan);
        }
    }

    let mut resident = vec![false; groups.len()];
    let mut count = 0;
    for class in classes_by_size(groups) {
        let longest = class.len().min(count_max - count);
        let fitting = (1..=longest).rev().find(|&k| {
            let mut trial = resident.clone();
            evenly_spaced(k, &class).for_each(|index| trial[index] = true);
            Plan::of(groups, &trial).arena_bytes() <= limits.budget_bytes
        });
        if let Some(k) = fitting {
            evenly_spaced(k, &class).for_each(|index| resident[index] = true);
            count += k;
        }
    }

    let best = Plan::of(groups, &resident);
    if best.arena_bytes() <= limits.budget_bytes {
        return Ok(best);
    }
    Err(shortfall(groups, count_max))
}

/// The smallest budget that any plan can keep to.
///
/// Beside the plan that streams everything, those are candidates that keep the largest
/// groups: one huge group (the output matrix, say) costs less resident than as a slot.
pub fn shortfall(groups: &[GroupSize], resident_groups_max: usize) -> Shortfall {
    let mut resident = vec![false; groups.len()];
    let mut least = Plan::of(groups, &resident);
    for index in classes_by_size(groups)
        .into_iter()
        .flatten()
        .take(resident_groups_max)
    {
        resident[index] = true;
        let plan = Plan::of(groups, &resident);
        if plan.arena_bytes() < least.arena_bytes() {
            least = plan;
        }
    }
    let pinned_bytes = groups
        .iter()
        .filter(|group| group.pinned)
        .map(|group| group.bytes)
        .sum();
    Shortfall {
        minimum_bytes: least.arena_bytes(),
        ring_bytes: least.slot_bytes.iter().sum(),
        pinned_bytes,
    }
}

/// Indices of the groups that may stream, in classes of equal size, largest first.
fn classes_by_size(groups: &[GroupSize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..groups.len())
        .filter(|&index| !groups[index].pinned && groups[index].bytes > 0)
        .collect();
    order.sort_by_key(|&index| std::cmp::Reverse(groups[index].bytes));
    order
        .chunk_by(|&a, &b| groups[a].bytes == groups[b].bytes)
        .map(<[usize]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers(count: usize, bytes: u64) -> Vec<GroupSize> {
        vec![
            GroupSize {
                bytes,
                pinned: false
            };
            count
        ]
    }

    fn limits(budget_bytes: u64) -> Limits {
        Limits {
            budget_bytes,
            resident_groups_max: None,
        }
    }

    #[test]
    fn everything_stays_when_it_fits() {
        let plan = plan(&layers(4, 10), &limits(40)).unwrap();
        assert_eq!(plan.placements, [Placement::Resident; 4]);
        assert_eq!(plan.arena_bytes(), 40);
    }

    #[test]
    fn half_a_budget_keeps_evenly_spaced_layers() {
        let plan = plan(&layers(8, 10), &limits(60)).unwrap();
        assert_eq!(plan.resident_bytes, 40);
        let streamed: Vec<usize> = (0..8)
            .filter(|&index| plan.placements[index] == Placement::Streamed)
            .collect();
        assert_eq!(streamed.len(), 4);
        assert!(
            streamed.windows(2).all(|pair| pair[1] - pair[0] == 2),
            "{streamed:?}"
        );
    }

    #[test]
    fn a_huge_output_stays_first() {
        let mut groups = layers(8, 10);
        groups.push(GroupSize {
            bytes: 100,
            pinned: false,
        });
        let plan = plan(&groups, &limits(125)).unwrap();
        assert_eq!(plan.placements[8], Placement::Resident);
        assert_eq!(plan.slot_bytes, [10, 10]);
    }

    #[test]
    fn a_limit_on_resident_groups_is_kept() {
        let limits = Limits {
            budget_bytes: 1000,
            resident_groups_max: Some(3),
        };
        let plan = plan(&layers(8, 10), &limits).unwrap();
        let kept = plan
            .placements
            .iter()
            .filter(|&&p| p == Placement::Resident)
            .count();
        assert_eq!(kept, 3);
    }

    proptest! {
        #[test]
        fn the_minimum_is_exact(
            sizes in prop::collection::vec((0u64..50, prop::bool::weighted(0.2)), 1..12),
            budget in 0u64..400,
        ) {
            let groups: Vec<GroupSize> = sizes
                .iter()
                .map(|&(bytes, pinned)| GroupSize { bytes, pinned })
                .collect();
            match plan(&groups, &limits(budget)) {
                Ok(plan) => {
                    prop_assert!(plan.arena_bytes() <= budget);
                    let total: u64 = groups.iter().map(|group| group.bytes).sum();
                    prop_assert_eq!(plan.resident_bytes + plan.streamed_bytes, total);
                }
                Err(shortfall) => {
                    prop_assert!(shortfall.minimum_bytes > budget);
                    prop_assert!(plan(&groups, &limits(shortfall.minimum_bytes)).is_ok());
                }
            }
        }
    }
}
