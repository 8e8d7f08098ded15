//! What the command line asks for.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::{PARTS, trial};

/// The flags, with their values and what they are without.
pub const USAGE: &str = "options: --minutes N (9), --only PART,PART (identity, sanitizer, \
     graphs, speed), --device NAME (CUDA0), --program PATH, --tests PATH, --folder PATH, \
     --out FILE (FOLDER/cuda.json), --budgets P,P (50,100,25,10,75; percent of the model), \
     --quant q4_0|q8_0 (q4_0), --smoke, --trial (the tests' device in the place of a GPU)";

/// All options.
pub struct Options {
    /// All of it ends after so many minutes.
    pub minutes: f64,
    /// The parts that run, in the order of [`PARTS`].
    pub only: Vec<String>,
    /// The GPU, as `--device` names it; `none` for a trial on the processor.
    pub device: String,
    /// `rpaged-cli`, built with `--features cuda`.
    pub program: PathBuf,
    /// The program of `tests/main.rs`, built likewise.
    pub tests: Option<PathBuf>,
    /// Where the model and all records go.
    pub folder: PathBuf,
    /// Where the result goes.
    pub out: PathBuf,
    /// Budgets, in percent of the model; what comes first is measured first.
    pub budgets: Vec<u64>,
    /// Type of the model's matrices.
    pub quant: String,
    /// A tiny model and short runs: whether everything runs, not how fast.
    pub smoke: bool,
    /// On the device of the tests.
    pub trial: bool,
}

impl Options {
    /// Reads the words behind the program's name.
    pub fn read(words: impl Iterator<Item = String>) -> Result<Self> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-models");
        let mut options = Self {
            minutes: 9.0,
            only: PARTS.map(str::to_owned).into(),
            device: "CUDA0".to_owned(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_rpaged-cli")),
            tests: None,
            out: PathBuf::new(),
            folder,
            budgets: vec![50, 100, 25, 10, 75],
            quant: "q4_0".to_owned(),
            smoke: false,
            trial: false,
        };
        let mut words = words.filter(|word| word != "--bench");
        while let Some(flag) = words.next() {
            if flag == "--smoke" {
                options.smoke = true;
                continue;
            }
            if flag == "--trial" {
                options.trial = true;
                options.device = trial::DEVICE.to_owned();
                options.program = std::env::current_exe()?;
                continue;
            }
            let value = words
                .next()
                .with_context(|| format!("'{flag}' is unknown or misses its value; {USAGE}"))?;
            options
                .take(&flag, &value)
                .with_context(|| format!("'{flag}' got '{value}'"))?;
        }
        if options.out.as_os_str().is_empty() {
            options.out = options.folder.join("cuda.json");
        }
        ensure!(
            options.program.is_file(),
            "'{}' is not there; build it with cargo build --release --features cuda, or name it \
             with --program",
            options.program.display()
        );
        Ok(options)
    }

    /// Flags for the number of threads: a trial leaves the machine to others.
    pub fn threads(&self) -> &'static [&'static str] {
        match self.smoke {
            true => &["-t", "1"],
            false => &[],
        }
    }

    fn take(&mut self, flag: &str, value: &str) -> Result<()> {
        match flag {
            "--minutes" => {
                self.minutes = value.parse()?;
                let is_sound = self.minutes > 0.0 && self.minutes <= 1440.0;
                ensure!(
                    is_sound,
                    "a run takes more than none and at most 1440 minutes"
                );
            }
            "--only" => {
                self.only = value.split(',').map(str::to_owned).collect();
                for part in &self.only {
                    ensure!(
                        PARTS.contains(&part.as_str()),
                        "there is no part '{part}'; {USAGE}"
                    );
                }
            }
            "--device" => {
                ensure!(!value.contains(','), "one device is measured");
                value.clone_into(&mut self.device);
            }
            "--program" => self.program = value.into(),
            "--tests" => self.tests = Some(value.into()),
            "--folder" => self.folder = value.into(),
            "--quant" => value.clone_into(&mut self.quant),
            "--out" => self.out = value.into(),
            "--budgets" => {
                let budgets = value.split(',').map(str::parse);
                self.budgets = budgets.collect::<Result<_, _>>()?;
            }
            _ => bail!("unknown option; {USAGE}"),
        }
        Ok(())
    }
}
