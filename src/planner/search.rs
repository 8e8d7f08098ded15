//! The search for the plan whose streamed bytes cost least: all sets of roles, each alone and
//! with one more role in some of the layers.

use super::spread::spread;
use super::{Item, Limits, LookAhead, Placement, Plan, Shortfall, WhenStreamed};

/// Roles that are tried by themselves; the smaller ones go together.
const WEIGHT_ROLES_MAX: usize = 6;
/// The same for states.
const STATE_ROLES_MAX: usize = 2;
/// Passes over which the loading of a tensor has to pay. A context that grows asks for a
/// new plan every few passes.
const PAYBACK_PASSES: u64 = 8;
/// What a streamed byte of a weight costs that is fetched; see `planner`.
const FETCHED_COST: u64 = 4;

/// What a streamed byte costs.
fn cost(item: &Item<'_>) -> u64 {
    match (item.state, item.cold) {
        // Small requests, more of them with every token, and rows that are written back.
        (true, _) => 2 * FETCHED_COST,
        (false, WhenStreamed::Fetched) => FETCHED_COST,
        (false, WhenStreamed::OnHost) => FETCHED_COST / 2,
        (false, WhenStreamed::PartOnHost) => FETCHED_COST / 4,
    }
}

/// The tensors of one role, as one entry for each group that has any.
struct Role {
    state: bool,
    members: Vec<Member>,
}

/// What one group has of a role.
struct Member {
    group: usize,
    items: Vec<usize>,
    bytes: u64,
    // What streaming them costs.
    cost: u64,
    largest: u64,
    // Bytes that would have to be loaded if it stays.
    streamed_now: u64,
}

/// Sums over what is streamed.
#[derive(Clone, Debug)]
struct Sums {
    // By group: bytes streamed, and those of them that are states.
    by_group: Vec<(u64, u64)>,
    streamed: u64,
    cost: u64,
    loaded: u64,
    group_max: u64,
    largest: u64,
    // The most that one operation reads: a weight, or all states of a layer.
    need_max: u64,
}

impl Sums {
    fn add(&mut self, role: &Role, member: &Member) {
        let (streamed, states) = &mut self.by_group[member.group];
        *streamed += member.bytes;
        if role.state {
            *states += member.bytes;
        }
        self.need_max = self.need_max.max(member.largest).max(*states);
        self.group_max = self.group_max.max(*streamed);
        self.streamed += member.bytes;
        self.cost += member.cost;
        self.largest = self.largest.max(member.largest);
        self.loaded -= member.streamed_now;
    }

    /// The rings that would do, the wanted one first.
    fn rings(&self, limits: &Limits) -> [Shape; 3] {
        let layer = self.group_max.max(self.need_max);
        let shape = |slots: u64, slot: u64| Shape {
            ring: (slots * slot).max(limits.ring_bytes_min).min(self.streamed),
            slot: slot.min(self.streamed),
        };
        let need = self.need_max;
        match limits.look_ahead {
            LookAhead::Nothing => [shape(1, need); 3],
            LookAhead::Layers(count) => [
                shape(u64::from(count) + 1, layer),
                shape(2, need),
                shape(1, need),
            ],
        }
    }
}

/// A ring's size, and that of the slots that segments take turns in.
#[derive(Clone, Copy, Debug)]
struct Shape {
    ring: u64,
    slot: u64,
}

/// A set of roles streamed everywhere, and one more in its first `count` groups.
#[derive(Clone, Copy, Debug)]
struct Choice {
    everywhere: u32,
    extra: usize,
    count: usize,
}

/// The best choice so far for one size of the ring.
#[derive(Clone, Copy, Debug)]
struct Best {
    choice: Choice,
    score: u64,
    shape: Shape,
}

/// See [`super::plan`]. `stays` and `forced` say of each item whether it is resident, or
/// streamed, in any plan.
pub(super) fn search(
    items: &[Item<'_>],
    stays: &[bool],
    forced: &[bool],
    group_count: usize,
    limits: &Limits,
) -> Result<Plan, Shortfall> {
    let loose: Vec<bool> = (0..items.len())
        .map(|index| !stays[index] && !forced[index])
        .collect();
    let roles = roles(items, &loose);
    let start = start(items, &roles, forced, group_count);
    let total: u64 = items.iter().map(|item| item.bytes).sum();

    let mut best: [Option<Best>; 3] = [None; 3];
    let mut least = Shortfall {
        minimum_bytes: u64::MAX,
        ring_bytes: 0,
    };
    for_each_choice(&roles, &start, |choice, sums| {
        let score = sums.cost + FETCHED_COST * sums.loaded / PAYBACK_PASSES;
        for (best, shape) in best.iter_mut().zip(sums.rings(limits)) {
            let ring = shape.ring;
            let arena = total - sums.streamed + ring;
            if arena < least.minimum_bytes {
                least = Shortfall {
                    minimum_bytes: arena,
                    ring_bytes: ring,
                };
            }
            let better = best.is_none_or(|best| (score, ring) < (best.score, best.shape.ring));
            if arena <= limits.budget_bytes && better {
                *best = Some(Best {
                    choice,
                    score,
                    shape,
                });
            }
        }
    });
    let found = best.into_iter().flatten().next().ok_or(least)?;
    Ok(chosen(items, &roles, forced, found, least.minimum_bytes))
}

/// Calls `try_it` for each choice, with its sums.
fn for_each_choice(roles: &[Role], start: &Sums, mut try_it: impl FnMut(Choice, &Sums)) {
    for everywhere in 0..1u32 << roles.len() {
        let is_in = |role: usize| everywhere & (1 << role) != 0;
        let mut base = start.clone();
        for (_, role) in roles.iter().enumerate().filter(|(index, _)| is_in(*index)) {
            role.members
                .iter()
                .for_each(|member| base.add(role, member));
        }
        let choice = Choice {
            everywhere,
            extra: 0,
            count: 0,
        };
        try_it(choice, &base);
        for (extra, role) in roles.iter().enumerate().filter(|(index, _)| !is_in(*index)) {
            let mut sums = base.clone();
            for (index, member) in role.members.iter().enumerate() {
                sums.add(role, member);
                let choice = Choice {
                    everywhere,
                    extra,
                    count: index + 1,
                };
                // All of them is another set's turn.
                if choice.count < role.members.len() {
                    try_it(choice, &sums);
                }
            }
        }
    }
}

/// The loose items by role, the members of each spread over the pass.
fn roles(items: &[Item<'_>], loose: &[bool]) -> Vec<Role> {
    let mut names: Vec<(&str, bool, u64)> = Vec::new();
    for (item, _) in items.iter().zip(loose).filter(|(_, loose)| **loose) {
        match names.iter_mut().find(|(name, ..)| *name == item.role) {
            Some((_, _, bytes)) => *bytes += item.bytes,
            None => names.push((item.role, item.state, item.bytes)),
        }
    }
    names.sort_by_key(|(name, _, bytes)| (std::cmp::Reverse(*bytes), *name));
    let mut roles = Vec::new();
    for (state, most) in [(false, WEIGHT_ROLES_MAX), (true, STATE_ROLES_MAX)] {
        let of_kind: Vec<&str> = names
            .iter()
            .filter(|(_, is_state, _)| *is_state == state)
            .map(|(name, ..)| *name)
            .collect();
        let alone = if of_kind.len() > most {
            most - 1
        } else {
            of_kind.len()
        };
        let (largest, rest) = of_kind.split_at(alone);
        let sets = largest.chunks(1).chain(std::iter::once(rest));
        for set in sets.filter(|set| !set.is_empty()) {
            roles.push(Role {
                state,
                members: members(items, loose, set),
            });
        }
    }
    roles
}

fn members(items: &[Item<'_>], loose: &[bool], names: &[&str]) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if !loose[index] || !names.contains(&item.role) {
            continue;
        }
        let place = match members.iter().position(|member| member.group == item.group) {
            Some(place) => place,
            None => {
                members.push(Member {
                    group: item.group,
                    items: Vec::new(),
                    bytes: 0,
                    cost: 0,
                    largest: 0,
                    streamed_now: 0,
                });
                members.len() - 1
            }
        };
        let member = &mut members[place];
        member.items.push(index);
        member.bytes += item.bytes;
        member.cost += item.bytes * cost(item);
        member.largest = member.largest.max(item.bytes);
        member.streamed_now += u64::from(item.streamed) * item.bytes;
    }
    members.sort_by_key(|member| member.group);
    let order: Vec<usize> = spread(&(0..members.len()).collect::<Vec<_>>()).collect();
    let mut members: Vec<Option<Member>> = members.into_iter().map(Some).collect();
    let in_order = order.into_iter().filter_map(|index| members[index].take());
    in_order.collect()
}

/// The sums when only the forced items are streamed.
fn start(items: &[Item<'_>], roles: &[Role], forced: &[bool], group_count: usize) -> Sums {
    let members = roles.iter().flat_map(|role| &role.members);
    let mut sums = Sums {
        by_group: vec![(0, 0); group_count],
        streamed: 0,
        cost: 0,
        loaded: members.map(|member| member.streamed_now).sum(),
        group_max: 0,
        largest: 0,
        need_max: 0,
    };
    for (index, item) in items.iter().enumerate().filter(|(index, _)| forced[*index]) {
        let member = Member {
            group: item.group,
            items: vec![index],
            bytes: item.bytes,
            cost: item.bytes * cost(item),
            largest: item.bytes,
            streamed_now: 0,
        };
        let role = Role {
            state: item.state,
            members: Vec::new(),
        };
        sums.add(&role, &member);
    }
    sums
}

fn chosen(
    items: &[Item<'_>],
    roles: &[Role],
    forced: &[bool],
    best: Best,
    minimum_bytes: u64,
) -> Plan {
    let placement = |forced: &bool| match forced {
        true => Placement::Streamed,
        false => Placement::Resident,
    };
    let mut placements: Vec<Placement> = forced.iter().map(placement).collect();
    for (index, role) in roles.iter().enumerate() {
        let count = if best.choice.everywhere & (1 << index) != 0 {
            role.members.len()
        } else if best.choice.count > 0 && best.choice.extra == index {
            best.choice.count
        } else {
            0
        };
        for item in role.members[..count]
            .iter()
            .flat_map(|member| &member.items)
        {
            placements[*item] = Placement::Streamed;
        }
    }
    let mut plan = Plan {
        placements,
        ring_bytes: best.shape.ring,
        slot_bytes: best.shape.slot,
        resident_bytes: 0,
        streamed_bytes: 0,
        cache_bytes: 0,
        minimum_bytes,
    };
    for (item, placement) in items.iter().zip(&plan.placements) {
        match placement {
            Placement::Cached | Placement::Resident => plan.resident_bytes += item.bytes,
            Placement::Streamed => {
                plan.streamed_bytes += item.bytes;
            }
        }
    }
    plan
}
