//! Plans for models of experts: their tensors share a cache, and the rest is planned as
//! ever beside it.
//!
//! A token reads a few of a layer's experts, and which ones is known only when it gets
//! there. So no choice of tensors that stay, or that travel as a whole, is a good one:
//! what the rest of the model leaves of the budget holds single experts, whichever are
//! asked for most.

use super::{Item, Limits, Placement, Plan, Shortfall, forced, pinned, search};

/// Plans for `items` when those in `cached` share a cache.
pub(super) fn plan(
    items: &[Item<'_>],
    cached: &[bool],
    group_count: usize,
    limits: &Limits,
) -> Result<Plan, Shortfall> {
    let of_kind = |kind: bool| {
        let kinds = items.iter().zip(cached);
        kinds.filter(move |(_, cached)| **cached == kind)
    };
    let experts_bytes: u64 = of_kind(true).map(|(item, _)| item.bytes).sum();
    // A pass over whole tensors needs one of them at a time.
    let smallest = of_kind(true).map(|(item, _)| item.bytes).max().unwrap_or(0);
    let rest: Vec<Item<'_>> = of_kind(false).map(|(item, _)| item.clone()).collect();

    let stays = pinned(&rest, group_count);
    let streams = forced(&rest, &stays, group_count, limits.resident_groups_max);
    let beside = Limits {
        budget_bytes: limits.budget_bytes.saturating_sub(smallest),
        ..*limits
    };
    let found = search::search(&rest, &stays, &streams, group_count, &beside);
    let (least, ring_bytes) = match &found {
        Ok(plan) => (plan.minimum_bytes, plan.ring_bytes),
        Err(shortfall) => (shortfall.minimum_bytes, shortfall.ring_bytes),
    };
    let total: u64 = items.iter().map(|item| item.bytes).sum();
    let bound = bound(items, cached, limits.resident_groups_max, experts_bytes);
    let may_stay = bound >= experts_bytes && !streams.contains(&true);
    let minimum_bytes = match may_stay {
        true => total.min(least + smallest),
        false => least + smallest,
    };
    if may_stay && total <= limits.budget_bytes {
        return Ok(Plan {
            placements: vec![Placement::Resident; items.len()],
            ring_bytes: 0,
            slot_bytes: 0,
            resident_bytes: total,
            streamed_bytes: 0,
            cache_bytes: 0,
            minimum_bytes,
        });
    }
    let shortfall = Shortfall {
        minimum_bytes,
        ring_bytes: ring_bytes + smallest,
    };
    let fits = limits.budget_bytes >= smallest;
    let mut plan = found.ok().filter(|_| fits).ok_or(shortfall)?;
    plan.cache_bytes = (limits.budget_bytes - plan.arena_bytes())
        .min(bound)
        .max(smallest);
    plan.minimum_bytes = minimum_bytes;
    let mut of_rest = std::mem::take(&mut plan.placements).into_iter();
    let placement = |cached: &bool| match cached {
        true => Some(Placement::Cached),
        false => of_rest.next(),
    };
    plan.placements = cached.iter().filter_map(placement).collect();
    Ok(plan)
}

/// Bytes that the cache may take: those of as many groups as may be resident.
fn bound(items: &[Item<'_>], cached: &[bool], groups_max: Option<u32>, bytes: u64) -> u64 {
    let Some(groups_max) = groups_max else {
        return bytes;
    };
    let of_experts = items.iter().zip(cached).filter(|(_, cached)| **cached);
    let mut groups: Vec<usize> = of_experts.map(|(item, _)| item.group).collect();
    groups.sort_unstable();
    groups.dedup();
    let count = (groups.len() as u64).max(1);
    bytes / count * count.min(u64::from(groups_max))
        + if u64::from(groups_max) >= count {
            bytes % count
        } else {
            0
        }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{LookAhead, WhenStreamed, plan};
    use super::*;

    fn item(group: usize, role: &'static str, bytes: u64) -> Item<'static> {
        Item {
            group,
            role,
            bytes,
            state: false,
            pinned: false,
            streamed: false,
            experts: role.ends_with("exps"),
            cold: WhenStreamed::default(),
        }
    }

    /// Layers of three expert tensors and one other.
    fn layers(count: usize) -> Vec<Item<'static>> {
        let roles = [
            ("gate_exps", 100),
            ("up_exps", 100),
            ("down_exps", 110),
            ("attn", 30),
        ];
        let layer = |group| roles.map(|(role, bytes)| item(group, role, bytes));
        (0..count).flat_map(layer).collect()
    }

    fn limits(budget_bytes: u64) -> Limits {
        Limits {
            budget_bytes,
            resident_groups_max: None,
            look_ahead: LookAhead::Layers(1),
            ring_bytes_min: 0,
        }
    }

    #[test]
    fn experts_are_cached_unless_everything_fits() {
        let items = layers(8);
        let total: u64 = items.iter().map(|item| item.bytes).sum();
        let all = plan(&items, 8, &limits(total)).unwrap();
        assert!(!all.placements.contains(&Placement::Cached));
        assert_eq!((all.resident_bytes, all.cache_bytes), (total, 0));

        let most = plan(&items, 8, &limits(total - 1)).unwrap();
        for (item, placement) in items.iter().zip(&most.placements) {
            assert_eq!(item.experts, *placement == Placement::Cached, "{item:?}");
        }
        // The rest stays, and the cache has what it leaves.
        assert_eq!(most.cache_bytes, 8 * 310 - 1);
        assert_eq!(most.ring_bytes, 0);
    }

    #[test]
    fn the_rest_is_streamed_when_the_smallest_cache_leaves_too_little() {
        let items = layers(8);
        let least = plan(&items, 8, &limits(0)).unwrap_err().minimum_bytes;
        // One tensor at a time, and one of the others.
        assert_eq!(least, 110 + 30);
        let plan = plan(&items, 8, &limits(least)).unwrap();
        assert_eq!((plan.cache_bytes, plan.ring_bytes), (110, 30));
    }

    #[test]
    fn a_bound_on_resident_groups_bounds_the_cache() {
        let items = layers(8);
        let bounded = |groups| {
            let limits = Limits {
                resident_groups_max: Some(groups),
                ..limits(1 << 20)
            };
            plan(&items, 8, &limits).unwrap()
        };
        assert_eq!(bounded(0).cache_bytes, 110);
        assert_eq!(bounded(4).cache_bytes, 4 * 310);
        assert_eq!(bounded(8).resident_bytes, 8 * 340);
    }

    proptest! {
        #[test]
        fn the_minimum_is_exact(
            sizes in prop::collection::vec(
                (0usize..4, 0usize..4, 0u64..50, prop::bool::ANY), 1..12),
            budget in 0u64..400,
            bound in prop::option::of(0u32..5),
        ) {
            let roles = ["gate_exps", "down_exps", "attn", "norm"];
            let items: Vec<Item<'_>> = sizes
                .iter()
                .map(|&(group, role, bytes, pinned)| Item {
                    pinned: pinned && role > 0,
                    ..item(group, roles[role], bytes)
                })
                .collect();
            let limits = |budget| Limits { resident_groups_max: bound, ..limits(budget) };
            let total: u64 = items.iter().map(|item| item.bytes).sum();
            match plan(&items, 4, &limits(budget)) {
                Ok(plan) => {
                    prop_assert!(plan.arena_bytes() <= budget && plan.minimum_bytes <= budget);
                    let in_cache = items.iter().zip(&plan.placements);
                    let in_cache = in_cache.filter(|(_, place)| **place == Placement::Cached);
                    let in_cache: Vec<u64> = in_cache.map(|(item, _)| item.bytes).collect();
                    prop_assert!(in_cache.iter().all(|bytes| *bytes <= plan.cache_bytes));
                    let cached: u64 = in_cache.iter().sum();
                    prop_assert_eq!(plan.resident_bytes + plan.streamed_bytes + cached, total);
                }
                Err(shortfall) => {
                    let minimum = shortfall.minimum_bytes;
                    prop_assert!(minimum > budget);
                    prop_assert!(plan(&items, 4, &limits(minimum)).is_ok());
                    prop_assert!(plan(&items, 4, &limits(minimum - 1)).is_err());
                }
            }
        }
    }
}
