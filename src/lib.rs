//! rpaged: llama.cpp's command line for models larger than the memory they are given.
//!
//! llama.cpp places a tensor once and never asks where its bytes really are; it only
//! hands a graph to a *backend*. So we give it a ggml device that wraps a real one. Seen
//! from llama.cpp, every layer lies on that device. Inside it, the address of a weight or
//! of a KV cache is a promise: the bytes are in the arena while a node that reads them
//! runs.
//!
//! ```text
//!  cli ──► session ──► llama ──► llama.cpp, unmodified
//!                                   │ registry, device, buffer type, buffer, backend
//!                                device      graph → segments → launches
//!                                   │ require, prefetch, wait_ready, locate, write_back
//!                                 pager ◄── planner   resident | streamed | cached
//!                                   │ requests, tickets
//!                              copy engine   direct reads, threads; a link to a device
//!                                   │
//!                             backing store  the model's files; a spill file for states
//! ```
//!
//! # One pass
//!
//! `device::backend` walks the graph once (`scan`), cuts it into segments that each take a
//! share of the ring and gives each streamed tensor its place there (`schedule`), and for
//! each segment: has the pager fetch what is missing, has what comes next fetched ahead as
//! far as places are free, waits for its own, points the tensors to where the bytes are,
//! lets the inner backend compute, points them back, and queues the write-back of what was
//! written. The fetch ahead wraps: the first streamed tensors of the next token are copied
//! while the last layer of this token computes.
//!
//! Which experts a token needs is known only when it gets to their layer: a segment begins
//! there, reads the ids that the one before has computed, and requires the experts they
//! name of the cache. A batch that needs them all needs whole tensors, as ever.
//!
//! # One plan
//!
//! The planner decides by tensor, and keeps the same share of every layer, so that the
//! transfer of each hides behind the computation of the one before it. It plans again
//! whenever sizes change: tensors come or go, the context grows by a page of the KV cache,
//! llama.cpp takes memory to compute with, the budget is changed from outside or by the
//! governor that watches memory. What leaves the arena makes room before anything comes.
//! Nothing of this changes a bit of the output.
//!
//! # Completion and chat
//!
//! A prompt is completed by `session::completion`; a conversation with a terminal on both
//! ends is `chat`'s. Both decode and sample through `session::generator` alone.
//!
//! # One pass for several tokens
//!
//! With drafting, what is fed is computed together with a guess of what follows
//! ([`session::generator`]); each token is still sampled by the model's own logits, one at a
//! time, and what was guessed wrong is forgotten. The weights travel once for all of them.
//! A draft model stays in main memory, on the plain CPU; the budget covers it,
//! unless it is of a GPU's memory.
//!
//! # Before a run
//!
//! [`forecast`] says what a run will be: a device that only takes notes has llama.cpp make
//! model and context without memory (`device::rehearsal`), the planner plans for what was
//! noted, and [`planner::cost`] turns bytes into seconds with the rates that
//! [`calibration`] measured on this machine. [`inspection`] shows what is in the files.
//!
//! # Between two passes
//!
//! Only there may the budget change: `session::boundary` asks how full memory is
//! ([`telemetry::memory`]), has a governor decide ([`telemetry::pressure`]), reads the
//! user's budget file when a signal says so, and has the pager make another plan. What
//! happened becomes records ([`telemetry::metrics`]).
//!
//! # Measuring
//!
//! [`mod@bench`] runs models without prompts and samplers, as llama-bench does: its contexts come
//! and go, its paged models change their budgets from run to run.
//!
//! # Invariants
//!
//! 1. **An address llama.cpp knows is never readable.** Paged tensors lie in address
//!    space that nobody may read or write ([`pager::memory::Reservation`]); a tensor that
//!    was not translated faults at once, in every build.
//! 2. **A segment runs only on bytes that are there.** Between `require` and `unpin` its
//!    places in the ring and its experts in the cache are pinned, and `wait_ready` has
//!    returned before the launch.
//! 3. **One writer or many readers.** A range of arena or store is written by one copy in
//!    flight, or by the segment that runs, or by an access from outside that has drained
//!    the engine; none of the others touches it then. That holds for the edges of experts
//!    too, which share blocks of direct I/O with their neighbours.
//! 4. **The engine appears to run in order.** Copies that touch the same bytes are done as
//!    they were submitted: a write-back before the fetch that reuses its place or reads
//!    what it wrote. No further wait orders the two.
//! 5. **The store is the truth, except while dirty.** For weights it is the model's file
//!    and never written. For a streamed state it is the spill file (or host memory, where
//!    the arena is elsewhere), up to date once the write-backs queued so far are done. For
//!    a resident tensor the arena is the truth. A page of a state that nobody has written
//!    is zero, and nowhere.
//! 6. **Tensors are restored after each launch**: llama.cpp uses its graphs again.
//! 7. **Nothing unwinds into C.** Each slot that does more than pass a call on is guarded;
//!    what it cannot report is recorded and asked for by whoever sees the call fail.
//!    After a panic every guarded slot refuses.
//! 8. **The budget bounds what is taken.** Resident tensors, KV pages in use, the ring, the
//!    cache, and what llama.cpp keeps here and computes with (adapters and tensors placed by
//!    hand among it) together never exceed it; a plan that would is refused with the
//!    smallest budget that works. Layers on other machines are not among it.
//! 9. **A pass allocates nothing** once its vectors have grown.
//!
//! # Glossary
//!
//! - *arena*: the memory that the budget bounds: the machine's, or a GPU's.
//! - *group*: the weights and states of one layer.
//! - *role*: what a tensor is to its layer: the same name in every layer.
//! - *resident*, *streamed*: in the arena always; in the ring while in use.
//! - *expert*, *cached*: a slice of a tensor of which a token reads a few; such tensors
//!   share a cache, in which single experts take memory.
//! - *state*: what a context writes: KV cache, recurrent states.
//! - *page*: the rows of some tokens in one state; the unit in which states take memory
//!   and travel.
//! - *granule*: the unit in which a device maps memory, often 2 MiB.
//! - *ring*: memory that streamed tensors take turns in, each at its place.
//! - *segment*: nodes that run in one launch of the inner backend.
//! - *inner device*: the ggml device that really computes: the CPU, or a GPU.
//!
//! Start reading at [`device`], then [`pager`].

pub mod bench;
pub mod calibration;
mod chat;
pub mod cli;
pub mod cuda;
pub mod device;
pub mod error;
pub mod forecast;
pub mod ggml;
pub mod inspection;
pub mod llama;
pub mod pager;
pub mod planner;
pub mod session;
pub mod telemetry;
