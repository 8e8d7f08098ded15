//! What is measured: each case is one combination of all lists, in llama-bench's order.

use serde::{Deserialize, Serialize};

use super::ranges::Pair;
use crate::device::Cold;

/// A model as the command line names it, and the file it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelName {
    /// What the results call it.
    pub shown: String,
    /// Its file, the first when it is split. It may be another one tomorrow: that of the
    /// built-in model has a new name in each process.
    #[serde(skip)]
    pub path: String,
}

/// What a case runs on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum Variant {
    /// Unpaged: llama.cpp as it is.
    Stock,
    /// Paged, within a budget.
    Paged {
        /// The budget as it was given.
        budget: String,
        /// The budget in bytes; zero until the model's size is known.
        budget_bytes: u64,
        /// Who computes with weights that a device has no room for.
        #[serde(default)]
        cold: Cold,
    },
}

impl Variant {
    /// Who computes with cold weights, when it is paged.
    pub fn cold(&self) -> Option<Cold> {
        match self {
            Self::Stock => None,
            Self::Paged { cold, .. } => Some(*cold),
        }
    }

    /// The budget in bytes, when there is one.
    pub fn budget_bytes(&self) -> Option<u64> {
        match self {
            Self::Stock => None,
            Self::Paged { budget_bytes, .. } => Some(*budget_bytes),
        }
    }
}

/// One combination. Names are those of llama-bench's fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are llama-bench's")]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a flag of llama-bench's"
)]
pub struct Case {
    pub model: ModelName,
    pub n_gpu_layers: i32,
    pub n_cpu_moe: i32,
    pub split_mode: String,
    pub load_mode: String,
    pub lazy_mode: String,
    pub main_gpu: i32,
    pub devices: String,
    pub tensor_split: String,
    pub overrides: String,
    pub no_host: bool,
    pub repack: bool,
    pub variant: Variant,
    pub embeddings: bool,
    pub no_op_offload: bool,
    pub n_batch: i32,
    pub n_ubatch: i32,
    pub type_k: String,
    pub type_v: String,
    pub no_kv_offload: bool,
    pub flash_attn: i32,
    pub n_threads: i32,
    pub cpu_mask: String,
    pub cpu_strict: bool,
    pub n_depth: i32,
    pub poll: i32,
    pub n_prompt: i32,
    pub n_gen: i32,
}

/// All lists. Names are those of the fields of [`Case`].
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are llama-bench's")]
pub struct Axes {
    pub model: Vec<ModelName>,
    pub n_gpu_layers: Vec<i32>,
    pub n_cpu_moe: Vec<i32>,
    pub split_mode: Vec<String>,
    pub load_mode: Vec<String>,
    pub lazy_mode: Vec<String>,
    pub main_gpu: Vec<i32>,
    pub devices: Vec<String>,
    pub tensor_split: Vec<String>,
    pub overrides: Vec<String>,
    pub no_host: Vec<bool>,
    pub repack: Vec<bool>,
    pub variant: Vec<Variant>,
    pub embeddings: Vec<bool>,
    pub no_op_offload: Vec<bool>,
    pub n_batch: Vec<i32>,
    pub n_ubatch: Vec<i32>,
    pub type_k: Vec<String>,
    pub type_v: Vec<String>,
    pub no_kv_offload: Vec<bool>,
    pub flash_attn: Vec<i32>,
    pub n_threads: Vec<i32>,
    pub cpu_mask: Vec<String>,
    pub cpu_strict: Vec<bool>,
    pub n_depth: Vec<i32>,
    pub poll: Vec<i32>,
    pub n_prompt: Vec<i32>,
    pub n_gen: Vec<i32>,
    pub n_pg: Vec<Pair>,
}

impl Default for Axes {
    /// llama-bench's defaults, except for what depends on the machine: models and threads.
    fn default() -> Self {
        let text = |value: &str| vec![value.to_owned()];
        Self {
            model: Vec::new(),
            n_gpu_layers: vec![-1],
            n_cpu_moe: vec![0],
            split_mode: text("layer"),
            load_mode: text("auto"),
            lazy_mode: text("auto"),
            main_gpu: vec![0],
            devices: text("auto"),
            tensor_split: text("0.00"),
            overrides: text("none"),
            no_host: vec![false],
            repack: vec![true],
            variant: vec![Variant::Stock],
            embeddings: vec![false],
            no_op_offload: vec![false],
            n_batch: vec![2048],
            n_ubatch: vec![512],
            type_k: text("f16"),
            type_v: text("f16"),
            no_kv_offload: vec![false],
            flash_attn: vec![-1],
            n_threads: Vec::new(),
            cpu_mask: text("0x0"),
            cpu_strict: vec![false],
            n_depth: vec![0],
            poll: vec![50],
            n_prompt: vec![512],
            n_gen: vec![128],
            n_pg: Vec::new(),
        }
    }
}

/// Cases that a sweep may have; more would not end.
pub const CASES_MAX: usize = 10_000;

#[cfg(test)]
impl Axes {
    /// Of one model, by one thread.
    pub fn of_test() -> Self {
        let model = ModelName {
            shown: "a".into(),
            path: "a".into(),
        };
        Self {
            model: vec![model],
            n_threads: vec![1],
            ..Self::default()
        }
    }
}

impl Axes {
    /// All combinations, outermost first what takes longest to change: the model.
    ///
    /// # Errors
    /// A sentence when there are none, or too many.
    pub fn cases(&self) -> Result<Vec<Case>, String> {
        let count = self.count();
        if count > CASES_MAX {
            return Err(format!(
                "these lists make {count} cases, and {CASES_MAX} are the most; shorten one"
            ));
        }
        let mut cases: Vec<Case> = self.model.iter().map(|model| self.first(model)).collect();
        macro_rules! each {
            ($($field:ident)*) => {
                $(cases = expand(cases, &self.$field, |case, value| case.$field = value);)*
            };
        }
        // The variant stands where a change of it costs a change of the model or the plan.
        each!(n_gpu_layers n_cpu_moe split_mode load_mode lazy_mode main_gpu devices);
        each!(tensor_split overrides no_host repack variant embeddings no_op_offload n_batch);
        each!(n_ubatch type_k type_v no_kv_offload flash_attn n_threads cpu_mask cpu_strict);
        each!(n_depth poll);
        let cases = expand(cases, &self.tests(), |case, Pair(prompt, gen_)| {
            (case.n_prompt, case.n_gen) = (prompt, gen_);
        });
        if cases.is_empty() {
            return Err("nothing to measure; give numbers of tokens with -p, -n or -pg".into());
        }
        Ok(cases)
    }

    /// Prompts, generations, and both, without the empty ones.
    fn tests(&self) -> Vec<Pair> {
        let prompts = self.n_prompt.iter().map(|count| Pair(*count, 0));
        let generations = self.n_gen.iter().map(|count| Pair(0, *count));
        let tests = prompts.chain(generations).chain(self.n_pg.iter().copied());
        tests.filter(|test| *test != Pair(0, 0)).collect()
    }

    fn count(&self) -> usize {
        macro_rules! product {
            ($($field:ident)*) => {
                self.tests().len()$(.saturating_mul(self.$field.len()))*
            };
        }
        product!(
            model n_gpu_layers n_cpu_moe split_mode load_mode lazy_mode main_gpu devices
            tensor_split overrides no_host repack variant embeddings no_op_offload n_batch
            n_ubatch type_k type_v no_kv_offload flash_attn n_threads cpu_mask cpu_strict
            n_depth poll
        )
    }

    /// A case on `model`; the rest is replaced list by list.
    fn first(&self, model: &ModelName) -> Case {
        Case {
            model: model.clone(),
            n_gpu_layers: -1,
            n_cpu_moe: 0,
            split_mode: String::new(),
            load_mode: String::new(),
            lazy_mode: String::new(),
            main_gpu: 0,
            devices: String::new(),
            tensor_split: String::new(),
            overrides: String::new(),
            no_host: false,
            repack: false,
            variant: Variant::Stock,
            embeddings: false,
            no_op_offload: false,
            n_batch: 0,
            n_ubatch: 0,
            type_k: String::new(),
            type_v: String::new(),
            no_kv_offload: false,
            flash_attn: 0,
            n_threads: 0,
            cpu_mask: String::new(),
            cpu_strict: false,
            n_depth: 0,
            poll: 0,
            n_prompt: 0,
            n_gen: 0,
        }
    }
}

/// Each case once for each value.
fn expand<T: Clone>(cases: Vec<Case>, values: &[T], set: impl Fn(&mut Case, T)) -> Vec<Case> {
    let mut all = Vec::with_capacity(cases.len() * values.len());
    for case in cases {
        for value in values {
            let mut case = case.clone();
            set(&mut case, value.clone());
            all.push(case);
        }
    }
    all
}

impl Case {
    /// Whether it runs paged.
    pub fn is_paged(&self) -> bool {
        self.variant != Variant::Stock
    }

    /// Tokens that a run of it is measured over.
    pub fn tokens(&self) -> i32 {
        self.n_prompt.saturating_add(self.n_gen)
    }

    /// What is measured, as llama-bench writes it: `pp512`, `tg128 @ d1024`.
    pub fn test(&self) -> String {
        let mut text = match (self.n_prompt, self.n_gen) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, generated) => format!("tg{generated}"),
            (prompt, generated) => format!("pp{prompt}+tg{generated}"),
        };
        if self.n_depth > 0 {
            text.push_str(&format!(" @ d{}", self.n_depth));
        }
        text
    }

    /// The same measurement on something else.
    pub fn on(&self, variant: Variant) -> Self {
        Self {
            variant,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes() -> Axes {
        let model = |name: &str| ModelName {
            shown: name.into(),
            path: name.into(),
        };
        Axes {
            model: vec![model("a"), model("b")],
            n_threads: vec![2],
            ..Axes::default()
        }
    }

    fn tests_of(axes: &Axes) -> Vec<String> {
        let cases = axes.cases().unwrap();
        let name = |case: &Case| format!("{} {}", case.model.shown, case.test());
        cases.iter().map(name).collect()
    }

    #[test]
    fn prompts_come_before_generations_and_both_for_each_model() {
        let mut axes = axes();
        axes.n_prompt = vec![16, 32, 0];
        axes.n_gen = vec![4];
        axes.n_pg = vec![Pair(8, 2), Pair(0, 0)];
        assert_eq!(
            tests_of(&axes),
            [
                "a pp16",
                "a pp32",
                "a tg4",
                "a pp8+tg2",
                "b pp16",
                "b pp32",
                "b tg4",
                "b pp8+tg2",
            ]
        );
    }

    #[test]
    fn the_inner_list_changes_first() {
        let mut axes = axes();
        axes.model.pop();
        axes.n_prompt = vec![0];
        axes.n_gen = vec![4];
        axes.n_batch = vec![64, 128];
        axes.n_threads = vec![1, 2];
        axes.n_depth = vec![0, 8];
        let cases = axes.cases().unwrap();
        let shown: Vec<_> = cases
            .iter()
            .map(|case| (case.n_batch, case.n_threads, case.n_depth))
            .collect();
        assert_eq!(
            shown,
            [
                (64, 1, 0),
                (64, 1, 8),
                (64, 2, 0),
                (64, 2, 8),
                (128, 1, 0),
                (128, 1, 8),
                (128, 2, 0),
                (128, 2, 8)
            ]
        );
        assert_eq!(cases[1].test(), "tg4 @ d8");
    }

    #[test]
    fn nothing_and_far_too_much_are_refused() {
        let mut axes = axes();
        axes.n_prompt = vec![0];
        axes.n_gen = vec![0];
        assert!(axes.cases().unwrap_err().contains("-pg"));
        axes.n_gen = (1..200).collect();
        axes.n_batch = (1..200).collect();
        assert!(axes.cases().unwrap_err().contains("79202"));
    }
}
