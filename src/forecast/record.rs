//! A forecast as JSON: one object, field by field. Sizes are bytes, times seconds; a speed
//! is null where it was not asked for, or where a rate that it needs is not known.

use serde::Serialize;

use super::advice::{self, Choice};
use super::{Memory, Speed, Subject, memory, pass_bytes};
use crate::calibration::Calibration;
use crate::error::Result;
use crate::ggml::workload::kind_name;
use crate::pager::GroupKey;
use crate::pager::outlook::Outlook;
use crate::planner::Placement;
use crate::planner::cold::Shares;

/// What `plan --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// The model, as it was named.
    pub model: String,
    /// Its architecture.
    pub architecture: String,
    /// Its parameters.
    pub parameters: u64,
    /// Bytes of its tensors.
    pub model_bytes: u64,
    /// Tokens that the context can hold (`-c`).
    pub context_tokens: u32,
    /// Tokens that the context holds in this plan (`--depth`).
    pub depth_tokens: usize,
    /// Tokens of a batch (`-ub`).
    pub ubatch_tokens: u32,
    /// Threads that compute tokens one by one.
    pub threads: u32,
    /// Threads that compute batches.
    pub threads_batch: u32,
    /// Whether files would be read past the page cache.
    pub direct: bool,
    /// The budget.
    pub budget_bytes: u64,
    /// The smallest budget that runs.
    pub budget_bytes_min: u64,
    /// The smallest budget with which everything stays.
    pub budget_bytes_whole: u64,
    /// What is in use of the budget, by kind.
    pub memory: Memory,
    /// One token, when the context holds `depth_tokens`.
    pub decode: Option<Speed>,
    /// A batch from an empty context on.
    pub prefill: Option<Speed>,
    /// The weights that have no room in a device's memory, by who computes with them; null
    /// where no device computes, or nothing is cold that the processor may compute with.
    pub cold: Option<Cold>,
    /// By layer, in the order of a pass.
    pub layers: Vec<Layer>,
    /// By role, the largest first.
    pub roles: Vec<Role>,
    /// Other budgets.
    pub budgets: Vec<Neighbour>,
    /// When this machine was measured; null without speeds.
    pub calibrated: Option<String>,
}

/// Cold weights, and how fast one token is by who computes with them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cold {
    /// The share of them, 0 to 1, that the processor would compute with: with `--cold auto` the
    /// one with which a token is fastest.
    pub share: f64,
    /// Tokens per second with that share.
    pub tokens_per_second: f64,
    /// Tokens per second when all of them cross the link.
    pub stream_tokens_per_second: f64,
    /// Tokens per second when the processor computes all that it may.
    pub processor_tokens_per_second: f64,
    /// Tokens per second when everything cold is the processor's and nothing crosses the link,
    /// as stock llama.cpp places it.
    pub static_tokens_per_second: f64,
}

impl Cold {
    fn new(shares: &Shares) -> Self {
        let per_second = |seconds: f64| 1.0 / seconds.max(1e-9);
        Self {
            share: shares.chosen.share,
            tokens_per_second: per_second(shares.chosen.seconds),
            stream_tokens_per_second: per_second(shares.stream_seconds),
            processor_tokens_per_second: per_second(shares.processor_seconds),
            static_tokens_per_second: per_second(shares.static_seconds),
        }
    }
}

/// A layer, and where its bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Its number; null for what belongs to none.
    pub layer: Option<u32>,
    /// What it is: `layer`, `encoder`, `output` or `shared`.
    pub part: &'static str,
    /// Bytes of weights that stay.
    pub resident_bytes: u64,
    /// Bytes of weights that travel in each pass.
    pub streamed_bytes: u64,
    /// Bytes of experts that share the cache.
    pub cached_bytes: u64,
    /// Bytes of states in use that stay.
    pub states_resident_bytes: u64,
    /// Bytes of states in use that travel.
    pub states_streamed_bytes: u64,
}

/// The tensors that are the same to their layers, and where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Role {
    /// The name without the layer.
    pub role: String,
    /// The element type; several, where layers differ.
    pub types: Vec<String>,
    /// How many there are.
    pub count: u64,
    /// Their bytes; of a state, those in use.
    pub bytes: u64,
    /// How many stay.
    pub resident: u64,
    /// How many travel in each pass.
    pub streamed: u64,
    /// How many share the cache of experts.
    pub cached: u64,
    /// Whether they are states (KV cache, recurrent states).
    pub state: bool,
}

/// Another budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// The budget.
    pub budget_bytes: u64,
    /// Bytes that travel in one pass.
    pub pass_bytes: u64,
    /// Tokens per second of decoding.
    pub decode_tokens_per_second: Option<f64>,
    /// Tokens per second of a batch.
    pub prefill_tokens_per_second: Option<f64>,
    /// Decoding, compared with the budget in question.
    pub decode_ratio: Option<f64>,
    /// The share of the cold weights that is the processor's; see `cold`.
    pub cold_share: Option<f64>,
}

impl Forecast {
    /// What a budget brings when the context holds `tokens`.
    ///
    /// # Errors
    /// `Memory` when there is no plan for it.
    pub fn new(
        subject: &Subject,
        rates: Option<&Calibration>,
        budget_bytes: u64,
        tokens: usize,
    ) -> Result<Self> {
        let chosen = advice::choice(subject, rates, budget_bytes, tokens)?;
        let facts = &subject.facts;
        let rate = |choice: &Choice| choice.decode.map(|speed| speed.tokens_per_second);
        let neighbour = |bytes: u64| {
            let other = advice::choice(subject, rates, bytes, tokens).ok()?;
            let ratio = rate(&other).zip(rate(&chosen));
            Some(Neighbour {
                budget_bytes: bytes,
                pass_bytes: travelling(subject, &other),
                decode_tokens_per_second: rate(&other),
                prefill_tokens_per_second: other.prefill.map(|speed| speed.tokens_per_second),
                decode_ratio: ratio.map(|(other, chosen)| other / chosen),
                cold_share: other.shares.map(|shares| shares.chosen.share),
            })
        };
        let budgets = advice::neighbours(subject, budget_bytes, tokens);
        Ok(Self {
            model: subject.name.clone(),
            architecture: subject.architecture.clone(),
            parameters: facts.parameters,
            model_bytes: subject.model_bytes(),
            context_tokens: facts.n_ctx,
            depth_tokens: tokens,
            ubatch_tokens: subject.batch_tokens(),
            threads: subject.run.threads().0,
            threads_batch: subject.run.threads().1,
            direct: subject.is_direct(),
            budget_bytes,
            budget_bytes_min: subject.minimum_bytes(tokens),
            budget_bytes_whole: subject.whole_bytes(tokens),
            memory: memory(subject, &chosen.outlook),
            decode: chosen.decode,
            prefill: chosen.prefill,
            cold: chosen.shares.as_ref().map(Cold::new),
            layers: layers(&chosen.outlook),
            roles: roles(subject, &chosen.outlook),
            budgets: budgets.into_iter().filter_map(neighbour).collect(),
            calibrated: rates.map(|rates| rates.date.clone()),
        })
    }
}

/// Bytes that travel for one token.
fn travelling(subject: &Subject, choice: &Choice) -> u64 {
    let decode = choice.decode.map(|speed| speed.pass_bytes);
    decode.unwrap_or_else(|| pass_bytes(subject, &choice.outlook, 1))
}

fn layers(outlook: &Outlook) -> Vec<Layer> {
    let mut keys: Vec<GroupKey> = outlook.tensors.iter().map(|tensor| tensor.group).collect();
    keys.sort_unstable();
    keys.dedup();
    let of_key = |key: &GroupKey| {
        let (layer, part) = match key {
            GroupKey::Shared => (None, "shared"),
            GroupKey::EncoderLayer(layer) => (Some(*layer), "encoder"),
            GroupKey::Layer(layer) => (Some(*layer), "layer"),
            GroupKey::Output => (None, "output"),
        };
        let mut sums = Layer {
            layer,
            part,
            ..Layer::default()
        };
        for tensor in outlook.tensors.iter().filter(|tensor| tensor.group == *key) {
            *match (tensor.placement, tensor.state) {
                (Placement::Resident, false) => &mut sums.resident_bytes,
                (Placement::Streamed, false) => &mut sums.streamed_bytes,
                (Placement::Cached, _) => &mut sums.cached_bytes,
                (Placement::Resident, true) => &mut sums.states_resident_bytes,
                (Placement::Streamed, true) => &mut sums.states_streamed_bytes,
            } += tensor.bytes;
        }
        sums
    };
    keys.iter().map(of_key).collect()
}

fn roles(subject: &Subject, outlook: &Outlook) -> Vec<Role> {
    let mut roles: Vec<Role> = Vec::new();
    for (tensor, matrix) in outlook.tensors.iter().zip(&subject.notes.paged) {
        let found = roles.iter().position(|role| role.role == tensor.role);
        let index = found.unwrap_or_else(|| {
            roles.push(Role {
                role: tensor.role.clone(),
                types: Vec::new(),
                count: 0,
                bytes: 0,
                resident: 0,
                streamed: 0,
                cached: 0,
                state: tensor.state,
            });
            roles.len() - 1
        });
        let role = &mut roles[index];
        let kind = kind_name(matrix.kind).unwrap_or("?");
        if !role.types.iter().any(|known| known == kind) {
            role.types.push(kind.to_owned());
        }
        role.count += 1;
        role.bytes += tensor.bytes;
        *match tensor.placement {
            Placement::Resident => &mut role.resident,
            Placement::Streamed => &mut role.streamed,
            Placement::Cached => &mut role.cached,
        } += 1;
    }
    roles.sort_by_key(|role| (role.state, std::cmp::Reverse(role.bytes)));
    roles
}
