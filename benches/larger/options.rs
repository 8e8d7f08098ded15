//! What the command line asks for.

use anyhow::{Context, Result, bail, ensure};

/// The flags without a value, then those with one.
pub const USAGE: &str = "options: --kv, --smoke, --noisy, --no-metrics, --make-only, \
     --layers N (33), --memory P,P (60,85; percent of the model's file), --rounds N (5), \
     --prompt N (512), --decode N (24), --threads N (2), --headroom MIB (64), --depth N (4), \
     --stock 'FLAGS', --ours 'FLAGS' (--mem-pressure 1)";

/// All options.
pub struct Options {
    /// Long contexts in place of large models.
    pub kv: bool,
    /// A tiny model and one round: whether everything runs, not how fast.
    pub smoke: bool,
    /// Runs count even when something else uses the machine.
    pub noisy: bool,
    /// Whether runs of ours write metrics; without them, what they stream is estimated.
    pub metrics: bool,
    pub make_only: bool,
    pub layers: u32,
    /// Memory that the runs get, in percent of the model's file.
    pub shares: Vec<u64>,
    pub rounds: usize,
    pub prompt_tokens: u32,
    pub decode_tokens: u32,
    pub threads: u32,
    /// What the budget leaves of a group's memory for all that is not paged.
    pub headroom_bytes: u64,
    /// Reads in flight when the storage's rate is measured.
    pub depth: usize,
    /// Further flags for stock, and for whatever is paged.
    pub stock: Vec<String>,
    pub ours: Vec<String>,
}

impl Options {
    /// Reads the words behind the program's name.
    pub fn read(words: impl Iterator<Item = String>) -> Result<Self> {
        let words: Vec<String> = words.filter(|word| word != "--bench").collect();
        let is_given = |flag: &str| words.iter().any(|word| word == flag);
        let mut options = Self::defaults(is_given("--kv"), is_given("--smoke"));
        let mut words = words.into_iter();
        while let Some(flag) = words.next() {
            if !options.take_switch(&flag) {
                let value = words
                    .next()
                    .with_context(|| format!("'{flag}' is unknown or misses its value; {USAGE}"))?;
                options
                    .take_value(&flag, &value)
                    .with_context(|| format!("'{flag}' got '{value}'"))?;
            }
        }
        let counts = [options.rounds, options.depth, options.shares.len()];
        ensure!(
            counts.iter().all(|&count| count > 0),
            "--rounds, --depth and --memory want at least 1"
        );
        ensure!(
            options.decode_tokens > 1 && options.prompt_tokens > 1,
            "--prompt and --decode want at least 2, as the first token ends the prompt"
        );
        Ok(options)
    }

    fn defaults(kv: bool, smoke: bool) -> Self {
        // The prompt, and the tokens behind it.
        let (prompt_tokens, decode_tokens) = match (kv, smoke) {
            (false, false) => (512, 24),
            (false, true) => (64, 8),
            (true, false) => (8000, 32),
            (true, true) => (448, 8),
        };
        Self {
            kv,
            smoke,
            noisy: smoke,
            metrics: true,
            make_only: false,
            layers: match (kv, smoke) {
                (false, false) => 33,
                (true, false) => 16,
                (_, true) => 24,
            },
            shares: vec![60, 85],
            rounds: match (kv, smoke) {
                (_, true) => 1,
                (true, false) => 3,
                (false, false) => 5,
            },
            prompt_tokens,
            decode_tokens,
            threads: 2,
            headroom_bytes: if smoke { 0 } else { 64 << 20 },
            depth: 4,
            stock: Vec::new(),
            // Otherwise a group that is nearly full has the plan shrink.
            ours: ["--mem-pressure", "1"].map(str::to_owned).into(),
        }
    }

    fn take_switch(&mut self, flag: &str) -> bool {
        match flag {
            // Already looked for: the defaults depend on them.
            "--kv" | "--smoke" => {}
            "--noisy" => self.noisy = true,
            "--no-metrics" => self.metrics = false,
            "--make-only" => self.make_only = true,
            _ => return false,
        }
        true
    }

    fn take_value(&mut self, flag: &str, value: &str) -> Result<()> {
        let words = || value.split_whitespace().map(str::to_owned).collect();
        match flag {
            "--layers" => self.layers = value.parse()?,
            "--memory" => {
                let shares = value.split(',').map(str::parse);
                self.shares = shares.collect::<Result<_, _>>()?;
            }
            "--rounds" => self.rounds = value.parse()?,
            "--prompt" => self.prompt_tokens = value.parse()?,
            "--decode" => self.decode_tokens = value.parse()?,
            "--threads" => self.threads = value.parse()?,
            "--headroom" => self.headroom_bytes = value.parse::<u64>()? << 20,
            "--depth" => self.depth = value.parse()?,
            "--stock" => self.stock = words(),
            "--ours" => self.ours = words(),
            _ => bail!("unknown option; {USAGE}"),
        }
        Ok(())
    }
}
