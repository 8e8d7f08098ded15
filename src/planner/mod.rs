//! From sizes and limits to a plan: which tensors stay in the arena, which are streamed
//! through its ring. Pure functions over values.
//!
//! # Balance
//!
//! A pass uses every layer once, in order. When every layer streams the same bytes, the
//! transfer of each hides behind the computation of the one before it, and the ring is as
//! small as one layer's share. So the plan is made by *role*: the tensors that have the
//! same name in every layer. Some roles are streamed in all layers, and at most one more
//! in some of them, spread over the pass:
//!
//! ```text
//!            layer 0   1   2   3   4   5   6   7
//!  ffn_down        ~   ~   ~   ~   ~   ~   ~   ~      streamed in all
//!  ffn_up          ~   .   ~   .   ~   .   ~   .      streamed in some, spread
//!  the rest        .   .   .   .   .   .   .   .      resident
//! ```
//!
//! All choices of roles are tried, and the one is taken that moves the fewest bytes per
//! token. Roles beyond the largest few are one role together.
//!
//! # What gives way first
//!
//! A byte of weights that leaves the arena costs a byte per token. So does a byte of the
//! KV cache in use; but its pages are small requests, there are more of them with every
//! token, and what is written goes back: it counts double, and gives way when weights
//! cannot. Weights that the processor can compute with where they lie give way before those
//! that have to cross a link: they count half, and experts, of which a token reads a few, a
//! quarter. So most plans are those of a static placement, with attention in a device's
//! memory and feed-forward blocks for the processor, and nothing crosses the link in them.
//! The output matrix is a role of its own: streaming it takes a ring as large as itself.
//! Tensors far smaller than their layer always stay, because a request of their own costs
//! more than the memory that they leave.
//!
//! # Experts
//!
//! A token uses a few of a layer's experts. When not everything fits, expert tensors are
//! neither resident nor streamed but share a cache of single experts: see `experts`.

pub mod cold;
pub mod cost;
mod experts;
mod search;
mod spread;
pub mod ubatch;

pub use self::spread::spread;

/// Where the bytes of a tensor are between two uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the arena, always.
    Resident,
    /// In the backing store; in the ring while in use.
    Streamed,
    /// In the backing store; in the cache, expert by expert, as far as there is room.
    Cached,
}

/// What becomes of a tensor without a place in the arena, in a pass over one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenStreamed {
    /// It is fetched.
    #[default]
    Fetched,
    /// The processor may compute with it where it lies.
    OnHost,
    /// The same, with a part of it: experts.
    PartOnHost,
}

/// What the planner knows of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Its layer, counted in the order in which a pass uses the layers.
    pub group: usize,
    /// What it is to its layer: the same for the same tensor of another layer.
    pub role: &'a str,
    /// Bytes that it takes in the arena; of a state, those in use.
    pub bytes: u64,
    /// Whether it is a state (KV cache, recurrent state) and no weight.
    pub state: bool,
    /// Cannot be streamed.
    pub pinned: bool,
    /// Is streamed now; keeping it resident means to load it.
    pub streamed: bool,
    /// Is made of experts, of which a token reads a few.
    pub experts: bool,
    /// What becomes of it when it is streamed.
    pub cold: WhenStreamed,
}

/// How much of the ring lies ahead of what is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookAhead {
    /// Nothing is fetched ahead.
    Nothing,
    /// This many layers, beside the one that computes.
    Layers(u32),
}

/// What a plan must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of tensors and ring together.
    pub budget_bytes: u64,
    /// Upper bound on groups of which anything but pinned tensors is resident.
    pub resident_groups_max: Option<u32>,
    /// What the ring should hold.
    pub look_ahead: LookAhead,
    /// Bytes that the ring holds at least, if anything is streamed.
    pub ring_bytes_min: u64,
}

/// The plan: a placement for each tensor, and the ring that the streamed ones need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// By tensor, in the order given.
    pub placements: Vec<Placement>,
    /// Bytes of the ring; 0 when nothing is streamed.
    pub ring_bytes: u64,
    /// Bytes of the slots that the ring is made of: what one segment takes at most.
    pub slot_bytes: u64,
    /// Bytes of the resident tensors.
    pub resident_bytes: u64,
    /// Bytes of the streamed tensors: what one pass moves.
    pub streamed_bytes: u64,
    /// Bytes of the cache that the cached tensors share; 0 when there are none.
    pub cache_bytes: u64,
    /// The smallest budget for which there is a plan.
    pub minimum_bytes: u64,
}

impl Plan {
    /// Bytes of the arena that the plan takes.
    pub fn arena_bytes(&self) -> u64 {
        self.resident_bytes + self.ring_bytes + self.cache_bytes
    }
}

/// The budget cannot hold even the smallest plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The smallest budget that works, in bytes.
    pub minimum_bytes: u64,
    /// The share of it that is for what does not stay: ring, smallest cache.
    pub ring_bytes: u64,
}

/// A tensor this many times smaller than its group always stays.
const SMALL: u64 = 128;

/// Plans for `items`, which belong to `group_count` groups.
///
/// # Errors
/// [`Shortfall`] when no plan fits the budget.
pub fn plan(items: &[Item<'_>], group_count: usize, limits: &Limits) -> Result<Plan, Shortfall> {
    let stays = pinned(items, group_count);
    let cached = |(item, stays): (&Item<'_>, &bool)| item.experts && !stays;
    let cached: Vec<bool> = items.iter().zip(&stays).map(cached).collect();
    if cached.contains(&true) {
        return experts::plan(items, &cached, group_count, limits);
    }
    let forced = forced(items, &stays, group_count, limits.resident_groups_max);
    search::search(items, &stays, &forced, group_count, limits)
}

/// Which items stay in any plan.
fn pinned(items: &[Item<'_>], group_count: usize) -> Vec<bool> {
    let mut bytes = vec![0u64; group_count];
    for item in items {
        bytes[item.group] += item.bytes;
    }
    let small = |item: &Item<'_>| item.bytes.saturating_mul(SMALL) < bytes[item.group];
    items
        .iter()
        .map(|item| item.pinned || item.bytes == 0 || (!item.state && small(item)))
        .collect()
}

/// Which items are streamed in any plan: those of the groups beyond the bound on resident
/// ones. The groups that may be resident are spread over the pass.
fn forced(
    items: &[Item<'_>],
    stays: &[bool],
    group_count: usize,
    groups_max: Option<u32>,
) -> Vec<bool> {
    let Some(groups_max) = groups_max else {
        return vec![false; items.len()];
    };
    let mut loose: Vec<usize> = items
        .iter()
        .zip(stays)
        .filter(|(_, stays)| !**stays)
        .map(|(item, _)| item.group)
        .collect();
    loose.sort_unstable();
    loose.dedup();
    let mut may_stay = vec![false; group_count];
    for group in spread::spread(&loose).take(groups_max as usize) {
        may_stay[group] = true;
    }
    items
        .iter()
        .zip(stays)
        .map(|(item, stays)| !stays && !may_stay[item.group])
        .collect()
}

#[cfg(test)]
mod tests;
