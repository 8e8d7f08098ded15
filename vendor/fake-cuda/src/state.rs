//! What the driver knows: cards, contexts, streams, events, memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::errors::{
    INVALID_CONTEXT, INVALID_HANDLE, NO_DEVICE, NOT_INITIALIZED, NOT_PERMITTED, SUCCESS, Status,
};
use crate::event::Event;
use crate::host::HostRanges;
use crate::memory::Memory;
use crate::report::violation;
use crate::settings::settings;
use crate::stream::{Point, Stream};

/// First handle of a context; one more for each card.
const CONTEXTS: usize = 0xC0DE_0000;

/// First handle of a stream or event: grows, so that an old one is found out.
const HANDLES: usize = 0x5EED_0000;

/// Streams, events and contexts.
#[derive(Debug)]
pub struct Tables {
    /// By handle.
    pub streams: BTreeMap<usize, Arc<Stream>>,
    /// By handle.
    pub events: BTreeMap<usize, Event>,
    /// How often each card's primary context is held.
    pub retained: Vec<u32>,
    default: Arc<Stream>,
    next: usize,
}

impl Tables {
    /// A handle that was never given out.
    pub fn handle(&mut self) -> usize {
        self.next += 16;
        self.next
    }

    /// The stream of a handle, and what comes before anything queued on it now.
    ///
    /// # Errors
    /// When there is none.
    pub fn stream(&self, handle: usize) -> Result<(Arc<Stream>, Vec<Point>), Status> {
        if handle <= 1 {
            let blocking = self.streams.values().filter(|stream| stream.is_blocking);
            let tails = blocking.map(Stream::tail).collect();
            return Ok((Arc::clone(&self.default), tails));
        }
        let stream = self.streams.get(&handle).ok_or(INVALID_HANDLE)?;
        let after = if stream.is_blocking {
            vec![self.default.tail()]
        } else {
            Vec::new()
        };
        Ok((Arc::clone(stream), after))
    }

    /// Everything queued anywhere.
    pub fn tails(&self) -> Vec<Point> {
        let streams = self.streams.values().chain([&self.default]);
        streams.map(Stream::tail).collect()
    }
}

/// The driver.
#[derive(Debug)]
pub struct State {
    tables: Mutex<Tables>,
    memory: Mutex<Memory>,
    host: Mutex<HostRanges>,
    lost: AtomicI32,
    launches: AtomicU64,
}

static STATE: OnceLock<State> = OnceLock::new();

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Starts the driver.
///
/// # Errors
/// When it has no card, or was told to fail.
pub fn initialize() -> Status {
    if let Some(code) = settings().init_error {
        return code;
    }
    if settings().devices == 0 {
        return NO_DEVICE;
    }
    if STATE.get().is_some() {
        return SUCCESS;
    }
    let Ok(memory) = Memory::new() else {
        return NOT_INITIALIZED;
    };
    let mut memory = Some(memory);
    STATE.get_or_init(|| State {
        tables: Mutex::new(Tables {
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            retained: vec![0; settings().devices],
            default: Stream::start(true, 0),
            next: HANDLES,
        }),
        memory: Mutex::new(memory.take().expect("made once")),
        host: Mutex::default(),
        lost: AtomicI32::new(SUCCESS),
        launches: AtomicU64::new(0),
    });
    SUCCESS
}

/// The driver, once it was started.
pub fn started() -> Option<&'static State> {
    STATE.get()
}

/// The driver, for a call that needs no context.
///
/// # Errors
/// When it was not started, lost its card, or is called from a host function.
pub fn driver() -> Result<&'static State, Status> {
    let state = STATE.get().ok_or(NOT_INITIALIZED)?;
    if IN_HOST_FUNCTION.get() {
        violation("a host function called the driver".to_owned());
        return Err(NOT_PERMITTED);
    }
    state.lost()?;
    Ok(state)
}

/// The driver and the number of the card whose context is current.
///
/// # Errors
/// As for [`driver`], and when there is no current context.
pub fn current() -> Result<(&'static State, usize), Status> {
    let state = driver()?;
    let card = CURRENT.get().checked_sub(CONTEXTS).ok_or(INVALID_CONTEXT)?;
    let is_held = state
        .tables()
        .retained
        .get(card)
        .is_some_and(|count| *count > 0);
    if is_held {
        Ok((state, card))
    } else {
        Err(INVALID_CONTEXT)
    }
}

/// The handle of a card's context.
pub fn context(card: usize) -> usize {
    CONTEXTS + card
}

/// Makes a context the thread's.
pub fn set_current(context: usize) {
    CURRENT.set(context);
}

/// The thread's context.
pub fn current_context() -> usize {
    CURRENT.get()
}

/// Runs a host function, which must not call the driver.
pub fn in_host_function(call: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    call();
    IN_HOST_FUNCTION.set(false);
}

/// A call's result as a code.
pub fn status(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(SUCCESS)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Streams, events and contexts.
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// The cards' memory.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Pinned host memory.
    pub fn host(&self) -> MutexGuard<'_, HostRanges> {
        lock(&self.host)
    }

    /// Counts a launch on a card; the driver may take more of it then.
    pub fn count_launch(&self, card: usize) {
        let number = self.launches.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some((_, bytes)) = settings().growth.filter(|(launch, _)| *launch == number)
            && self.memory().take(card, bytes).is_err()
        {
            violation("the driver has no room for what it loads".to_owned());
        }
    }

    /// From now on every call fails with `code`.
    pub fn lose(&self, code: Status) {
        let _ = self
            .lost
            .compare_exchange(SUCCESS, code, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether the card is there.
    ///
    /// # Errors
    /// What it was lost with.
    pub fn lost(&self) -> Result<(), Status> {
        match self.lost.load(Ordering::SeqCst) {
            SUCCESS => Ok(()),
            code => Err(code),
        }
    }

    /// Waits for everything queued anywhere.
    ///
    /// # Errors
    /// When the card was lost meanwhile.
    pub fn synchronize(&self) -> Result<(), Status> {
        let tails = self.tables().tails();
        for tail in tails {
            tail.wait();
        }
        self.lost()
    }
}
