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
            largest_bytes: 0,
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
