//! What a test model is made of: metadata, tensors, and how their values are drawn.

use ggml_sys as sys;

use super::gguf::{self, Encoded, Value};
use super::random::Random;

/// How a tensor's values are drawn, and whether the model's format applies to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Weights of a matrix product: variance 1/fan-in keeps activations near 1.
    Matrix,
    /// The same, in F32 whatever the model's format (routers, convolutions).
    Plain,
    /// Factors near 1.
    Norm,
    /// Offsets near 0.
    Bias,
    /// The decay rates of a state-space model: negative.
    Decay,
    /// The bias of a state-space model's time step, before its softplus.
    TimeStep,
}

/// One tensor of a recipe.
struct Tensor {
    name: String,
    dims: Vec<i64>,
    fill: Fill,
}

/// A model, before it is written.
pub struct Recipe {
    /// Seeds the values, together with the tensor's name.
    seed: u64,
    architecture: &'static str,
    /// The format of the matrices.
    kind: sys::ggml_type,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

impl Recipe {
    /// An empty model of llama.cpp's architecture `architecture`, matrices in `kind`.
    pub fn new(architecture: &'static str, kind: sys::ggml_type, seed: u64) -> Self {
        let metadata = vec![
            ("general.architecture".to_owned(), Value::Text(architecture)),
            ("tokenizer.ggml.model".to_owned(), Value::Text("none")),
        ];
        Self {
            seed,
            architecture,
            kind,
            metadata,
            tensors: Vec::new(),
        }
    }

    /// Adds `key`, which stands behind the architecture's name.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata
            .push((format!("{}.{key}", self.architecture), value));
    }

    /// Adds whole numbers.
    pub fn set_all(&mut self, pairs: &[(&str, u32)]) {
        for (key, value) in pairs {
            self.set(key, Value::U32(*value));
        }
    }

    /// Adds a tensor; `dims[0]` is the length of a row.
    pub fn tensor(&mut self, name: &str, dims: &[i64], fill: Fill) {
        let name = name.to_owned();
        self.tensors.push(Tensor {
            name,
            dims: dims.to_vec(),
            fill,
        });
    }

    /// Adds the tensor `blk.LAYER.name`.
    pub fn layer(&mut self, layer: u32, name: &str, dims: &[i64], fill: Fill) {
        self.tensor(&format!("blk.{layer}.{name}"), dims, fill);
    }

    /// The metadata, and every tensor in its file format.
    pub fn encode(&self) -> (Vec<(String, Value)>, Vec<Encoded>) {
        let tensors = self
            .tensors
            .iter()
            .map(|tensor| self.encode_tensor(tensor))
            .collect();
        (self.metadata.clone(), tensors)
    }

    /// A LoRA adapter of rank `rank` for all matrices of this model, with its alpha.
    pub fn encode_lora(
        &self,
        seed: u64,
        rank: i64,
        alpha: f32,
    ) -> (Vec<(String, Value)>, Vec<Encoded>) {
        let text = |key: &str, value| (key.to_owned(), Value::Text(value));
        let metadata = vec![
            text("general.type", "adapter"),
            text("general.architecture", self.architecture),
            text("adapter.type", "lora"),
            ("adapter.lora.alpha".to_owned(), Value::F32(alpha)),
        ];
        // llama.cpp adapts an embedding that is the output as well as neither.
        let is_tied = self
            .tensors
            .iter()
            .all(|tensor| tensor.name != "output.weight");
        let is_adapted = |tensor: &&Tensor| {
            tensor.fill == Fill::Matrix && !(is_tied && tensor.name == "token_embd.weight")
        };
        let matrices = self.tensors.iter().filter(is_adapted);
        let parts = matrices.flat_map(|tensor| {
            let mut first = tensor.dims.clone();
            let mut second = tensor.dims.clone();
            if tensor.name == "token_embd.weight" {
                // Its rows are looked up, so its two factors are the other way round.
                (first[0], first[1]) = (rank, tensor.dims[1]);
                (second[0], second[1]) = (rank, tensor.dims[0]);
            } else {
                first[1] = rank;
                second[0] = rank;
            }
            [("lora_a", first), ("lora_b", second)].map(|(part, dims)| {
                let name = format!("{}.{part}", tensor.name);
                let mut random = Random::named(&format!("{seed}/{name}"));
                let count: i64 = dims.iter().product();
                let values: Vec<f32> = (0..count).map(|_| random.between(-0.1, 0.1)).collect();
                gguf::encode(&name, sys::GGML_TYPE_F32, &dims, &values)
            })
        });
        (metadata, parts.collect())
    }

    fn encode_tensor(&self, tensor: &Tensor) -> Encoded {
        let mut random = Random::named(&format!("{}/{}", self.seed, tensor.name));
        let count: i64 = tensor.dims.iter().product();
        let spread = (3.0 / tensor.dims[0] as f32).sqrt();
        let (low, high) = match tensor.fill {
            Fill::Matrix | Fill::Plain => (-spread, spread),
            Fill::Norm => (0.8, 1.2),
            Fill::Bias => (-0.2, 0.2),
            Fill::Decay => (-8.0, -0.5),
            Fill::TimeStep => (-4.0, -1.0),
        };
        let values: Vec<f32> = (0..count).map(|_| random.between(low, high)).collect();
        let kind = if tensor.fill == Fill::Matrix {
            self.kind
        } else {
            sys::GGML_TYPE_F32
        };
        gguf::encode(&tensor.name, kind, &tensor.dims, &values)
    }
}
