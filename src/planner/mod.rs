//! From sizes and limits to a plan: which groups of tensors stay in the arena, which
//! are streamed through its ring. Pure functions over values.
//!
//! A *group* is what travels together: the weights and the KV cache of one layer. The
//! plan is kept by group here, but [`Placement`] belongs to a tensor everywhere else,
//! so that a finer plan changes this module alone.

mod spread;

use spread::spread;

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
    /// Bytes of each of the ring's slots: the largest group that streams; 0 when none
    /// does. All slots are equal, so that any group fits any of them.
    pub slot_bytes: u64,
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

/// The ring slot that a streamed group prefers: always the same for a given plan, so
/// that addresses repeat from pass to pass. `rank` counts streamed groups alone.
pub fn home_slot(rank: usize) -> usize {
    rank % RING_SLOTS
}

impl Plan {
    /// Bytes of the arena that the plan takes.
    pub fn arena_bytes(&self) -> u64 {
        self.resident_bytes + self.slot_bytes * RING_SLOTS as u64
    }

    /// The plan in which exactly the groups marked in `resident` stay.
    fn of(groups: &[GroupSize], resident: &[bool]) -> Self {
        let mut plan = Self {
            placements: Vec::with_capacity(groups.len()),
            slot_bytes: 0,
            resident_bytes: 0,
            streamed_bytes: 0,
        };
        for (group, &stays) in groups.iter().zip(resident) {
            if stays || group.pinned || group.bytes == 0 {
                plan.placements.push(Placement::Resident);
                plan.resident_bytes += group.bytes;
            } else {
                plan.placements.push(Placement::Streamed);
                plan.streamed_bytes += group.bytes;
                plan.slot_bytes = plan.slot_bytes.max(group.bytes);
            }
        }
        plan
    }
}

/// Plans by size: as many whole classes of equal size as fit stay, from the largest
/// down, because the ring shrinks with the largest group that streams; then, of each
/// further class, as many members as fit, spread over the pass, so that the time of a
/// resident layer hides the copy of the streamed one behind it.
///
/// # Errors
/// [`Shortfall`] when no plan fits the budget.
pub fn plan(groups: &[GroupSize], limits: &Limits) -> Result<Plan, Shortfall> {
    let classes = classes_by_size(groups);
    let count_max = limits
        .resident_groups_max
        .map_or(usize::MAX, |max| max as usize);
    let fits = |resident: &[bool]| Plan::of(groups, resident).arena_bytes() <= limits.budget_bytes;

    // Keeping a class may cost more than it saves, and keeping the next one as well less.
    let mut resident = vec![false; groups.len()];
    let mut base = fits(&resident).then(|| (resident.clone(), 0, 0));
    let mut count = 0;
    for (index, class) in classes.iter().enumerate() {
        count += class.len();
        class.iter().for_each(|&member| resident[member] = true);
        if count <= count_max && fits(&resident) {
            base = Some((resident.clone(), index + 1, count));
        }
    }
    let Some((mut resident, class_first, mut count)) = base else {
        return Err(shortfall(groups, count_max));
    };

    for class in &classes[class_first..] {
        let longest = class.len().min(count_max - count);
        for member in spread(class).take(longest) {
            resident[member] = true;
            if fits(&resident) {
                count += 1;
            } else {
                resident[member] = false;
                break;
            }
        }
    }
    Ok(Plan::of(groups, &resident))
}

/// The smallest budget that any plan can keep to, with at most `resident_groups_max`
/// loose groups resident.
///
/// Beside the plan that streams everything, those are candidates that keep the largest
/// groups: a huge one (the output matrix, say) costs less resident than as a slot. To
/// shrink the slots, all groups above the new size must stay; keeping any other costs.
pub fn shortfall(groups: &[GroupSize], resident_groups_max: usize) -> Shortfall {
    let mut resident = vec![false; groups.len()];
    let mut least = Plan::of(groups, &resident);
    let mut count = 0;
    for class in classes_by_size(groups) {
        count += class.len();
        if count > resident_groups_max {
            break;
        }
        class.iter().for_each(|&member| resident[member] = true);
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
        ring_bytes: least.slot_bytes * RING_SLOTS as u64,
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
        assert_eq!(plan.slot_bytes, 10);
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

    #[test]
    fn a_little_less_budget_only_takes_layers_away() {
        let kept = |budget| {
            let plan = plan(&layers(20, 10), &limits(budget)).unwrap();
            let kept = |index: &usize| plan.placements[*index] == Placement::Resident;
            (0..20).filter(kept).collect::<Vec<usize>>()
        };
        for budget in (30..190).step_by(10) {
            let (less, more) = (kept(budget), kept(budget + 10));
            assert!(
                less.iter().all(|index| more.contains(index)),
                "{less:?} {more:?}"
            );
        }
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
                    let minimum = shortfall.minimum_bytes;
                    prop_assert!(minimum > budget);
                    prop_assert!(plan(&groups, &limits(minimum)).is_ok());
                    prop_assert!(plan(&groups, &limits(minimum - 1)).is_err());
                }
            }
        }
    }
}
