//! Runs a model in llama.cpp, stock or paged, and keeps every logit.

mod compare;
mod raw;
mod stock;

use std::collections::HashMap;

use ggml_sys as sys;
use rpaged::device::{PagedDevice, PagingConfig};

pub use self::compare::{assert_same, assert_sound, difference};
pub use self::raw::{LlamaContext, LlamaModel, Placement, inner_of};
pub use self::stock::stock;
use crate::models::{Model, prompt};

/// When flash attention is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flash {
    On,
    Off,
    Auto,
}

impl Flash {
    fn raw(self) -> sys::llama_flash_attn_type {
        match self {
            Self::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            Self::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            Self::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        }
    }
}

/// Format of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cache {
    F16,
    Q8,
}

impl Cache {
    fn raw(self) -> sys::ggml_type {
        match self {
            Self::F16 => sys::GGML_TYPE_F16,
            Self::Q8 => sys::GGML_TYPE_Q8_0,
        }
    }
}

/// One token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub token: i32,
    pub position: i32,
    pub sequence: i32,
}

/// One thing that a run does; what it saves, it saves under a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Decodes these tokens as one batch.
    Decode(Vec<Entry>),
    /// Decodes `count` tokens one by one, each the likeliest after the row before it.
    Generate {
        sequence: i32,
        position: i32,
        count: i32,
    },
    /// Copies a sequence.
    Copy {
        from: i32,
        to: i32,
    },
    /// Removes positions of a sequence.
    Remove {
        sequence: i32,
        first: i32,
        end: i32,
    },
    /// Moves positions of a sequence.
    Shift {
        sequence: i32,
        first: i32,
        end: i32,
        delta: i32,
    },
    /// Forgets everything, perhaps with the bytes.
    Clear {
        data: bool,
    },
    Save(u8),
    Restore(u8),
    SaveSequence {
        slot: u8,
        sequence: i32,
    },
    RestoreSequence {
        slot: u8,
        sequence: i32,
    },
}

impl Step {
    /// Greedy generation of `count` tokens in a sequence, the first one at `position`.
    pub fn generate(sequence: i32, position: i32, count: i32) -> Self {
        Self::Generate {
            sequence,
            position,
            count,
        }
    }

    /// A batch that continues `sequence` at `position`.
    pub fn feed(sequence: i32, position: i32, tokens: &[i32]) -> Self {
        let entry = |(token, position)| Entry {
            token,
            position,
            sequence,
        };
        Self::Decode(tokens.iter().copied().zip(position..).map(entry).collect())
    }
}

/// What changes a model's answers beside its own weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Adapter {
    /// The model's adapter of this seed, times so many tenths.
    Lora { seed: u64, tenths: i16 },
    /// A vector added to the outputs of these layers.
    Vector { first: i32, last: i32 },
}

/// All that decides the logits of a run, apart from where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunSpec {
    pub model: Model,
    /// Tokens of context, of all sequences together.
    pub context: u32,
    pub batch: u32,
    pub ubatch: u32,
    pub flash: Flash,
    /// Format of the keys, and of the values where flash attention allows it.
    pub cache: Cache,
    pub threads: i32,
    pub sequences: u32,
    /// One buffer for all sequences.
    pub unified: bool,
    pub adapters: Vec<Adapter>,
    /// Patterns of tensors that are placed by hand, in llama.cpp's own CPU memory.
    pub placed: Vec<&'static str>,
    pub steps: Vec<Step>,
}

impl RunSpec {
    /// A prompt of `prompt_tokens`, then `generated` greedy tokens, with default settings.
    pub fn new(model: Model, prompt_tokens: usize, generated: i32) -> Self {
        let position = i32::try_from(prompt_tokens).unwrap();
        Self {
            model,
            context: 256,
            batch: 512,
            ubatch: 512,
            flash: Flash::Auto,
            cache: Cache::F16,
            threads: 1,
            sequences: 1,
            unified: false,
            adapters: Vec::new(),
            placed: Vec::new(),
            steps: vec![
                Step::feed(0, 0, &prompt(7, prompt_tokens)),
                Step::generate(0, position, generated),
            ],
        }
    }

    /// llama.cpp quantises the values' cache only under flash attention.
    fn cache_v(&self) -> Cache {
        if self.flash == Flash::Off {
            Cache::F16
        } else {
            self.cache
        }
    }
}

/// The call of llama.cpp that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Load,
    Context,
    Adapter,
    /// `llama_decode` returned this.
    Decode(i32),
}

/// Every logit of a run: one row for each token that was decoded, in order.
pub type Logits = Vec<Vec<f32>>;

/// Loads the model to `placement` and runs the steps of `spec`.
pub fn run(placement: Placement<'_>, spec: &RunSpec) -> Result<Logits, Failure> {
    let model = LlamaModel::of(spec, placement)?;
    let mut context = LlamaContext::new(&model, spec)?;
    run_steps(&mut context, &spec.steps)
}

/// Runs `steps` in a context.
pub fn run_steps(context: &mut LlamaContext<'_>, steps: &[Step]) -> Result<Logits, Failure> {
    let mut rows = Logits::new();
    let mut saved: HashMap<u8, Vec<u8>> = HashMap::new();
    for step in steps {
        match step {
            Step::Decode(entries) => rows.extend(context.decode(entries)?),
            Step::Generate {
                sequence,
                position,
                count,
            } => {
                for position in *position..position + count {
                    let token = likeliest(rows.last().unwrap());
                    let entry = Entry {
                        token,
                        position,
                        sequence: *sequence,
                    };
                    rows.extend(context.decode(&[entry])?);
                }
            }
            Step::Copy { from, to } => context.copy_sequence(*from, *to),
            Step::Remove {
                sequence,
                first,
                end,
            } => {
                assert!(
                    context.remove(*sequence, *first, *end),
                    "could not remove {step:?}"
                );
            }
            Step::Shift {
                sequence,
                first,
                end,
                delta,
            } => {
                context.shift(*sequence, *first, *end, *delta);
            }
            Step::Clear { data } => context.clear(*data),
            Step::Save(slot) => drop(saved.insert(*slot, context.save())),
            Step::Restore(slot) => context.restore(&saved[slot]),
            Step::SaveSequence { slot, sequence } => {
                drop(saved.insert(*slot, context.save_sequence(*sequence)));
            }
            Step::RestoreSequence { slot, sequence } => {
                context.restore_sequence(&saved[slot], *sequence);
            }
        }
    }
    Ok(rows)
}

/// The token id with the highest logit, the first of equals.
pub fn likeliest(logits: &[f32]) -> i32 {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = index;
        }
    }
    i32::try_from(best).unwrap()
}

/// Makes a device as `config` says, runs `spec` on it; a failure comes with its sentence.
pub fn run_paged(config: &PagingConfig, spec: &RunSpec) -> Result<Logits, String> {
    let device = PagedDevice::new(config.clone()).map_err(|error| error.to_string())?;
    run(Placement::Paged(&device), spec).map_err(|failure| match device.take_error() {
        Some(error) => error.to_string(),
        None => format!("{failure:?} without a recorded error"),
    })
}
