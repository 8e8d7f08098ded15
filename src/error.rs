//! What can end a run, each kind with its documented exit code.
//!
//! A message is one sentence in lower case, without a full stop, with quotes round
//! values, units behind numbers, and the flag that helps.

/// The way a run ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line cannot be understood (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// Understood, but not built yet; never silently ignored (exit code 3).
    #[error("{0}")]
    NotBuilt(String),
    /// The memory allowed or available does not suffice (exit code 4).
    #[error("{0}")]
    Memory(String),
    /// The world failed: a file, a model, a device, a computation (exit code 1).
    #[error("{0}")]
    Failed(String),
    /// We have a bug, or llama.cpp aborted (exit code 70).
    #[error("{0}")]
    Bug(String),
    /// Ctrl-C or a termination signal; what was generated has been printed
    /// (exit code 128 + the signal's number, 130 for Ctrl-C).
    #[error("interrupted")]
    Interrupted {
        /// The signal's number.
        signal: u8,
    },
    /// Nobody reads our standard output any more (exit code 141, as SIGPIPE gives).
    #[error("standard output was closed")]
    OutputClosed,
}

/// A result whose error knows its exit code.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the end was asked for from outside: nobody needs to be told.
    pub fn is_wanted(&self) -> bool {
        matches!(self, Self::Interrupted { .. } | Self::OutputClosed)
    }

    /// The exit code, as the README documents it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotBuilt(_) => 3,
            Self::Memory(_) => 4,
            Self::Bug(_) => 70,
            Self::Interrupted { signal } => 128 + signal,
            Self::OutputClosed => 141,
        }
    }
}
