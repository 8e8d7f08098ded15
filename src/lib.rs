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
//!                                 pager ◄── planner   resident | streamed
//!                                   │ requests, tickets
//!                              copy engine   worker threads, in order
//!                                   │
//!                             backing store  the model's files; host memory for states
//! ```
//!
//! # One pass
//!
//! `device::backend` walks the graph once (`scan`), cuts it where another streamed layer
//! begins (`schedule`), and for each segment: has the pager fetch what is missing, has
//! the next segment's bytes fetched ahead, waits for its own, points the tensors to where
//! the bytes are, lets the inner backend compute, points them back, and queues the
//! write-back of what was written. The fetch ahead wraps: the first streamed layer of the
//! next token is copied while the last one of this token computes.
//!
//! # Between two passes
//!
//! Only there may the budget change: `session::boundary` asks how full memory is
//! ([`telemetry::memory`]), has a governor decide ([`telemetry::pressure`]), reads the
//! user's budget file when a signal says so, and has the pager make another plan. What
//! happened becomes records ([`telemetry::metrics`]).
//!
//! # Invariants
//!
//! 1. **An address llama.cpp knows is never readable.** Paged tensors lie in address
//!    space that nobody may read or write ([`pager::memory::Reservation`]); a tensor that
//!    was not translated faults at once, in every build.
//! 2. **A segment runs only on bytes that are there.** Between `require` and `unpin` the
//!    slots of a segment's groups are pinned, and `wait_ready` has returned before the
//!    launch.
//! 3. **One writer or many readers.** A range of arena or store is touched by one copy in
//!    flight, or by the segment that runs, or by an access from outside that has drained
//!    the engine; never by two of them.
//! 4. **The engine runs in order.** A write-back is queued before the fetch that reuses
//!    its slot or reads what it wrote; no further wait orders the two.
//! 5. **The store is the truth, except while dirty.** For weights it is the model's file
//!    and never written. For a streamed state it is host memory, up to date once the
//!    write-backs queued so far are done. For a resident tensor the arena is the truth.
//! 6. **Tensors are restored after each launch**: llama.cpp uses its graphs again.
//! 7. **Nothing unwinds into C.** Each slot that does more than pass a call on is guarded;
//!    what it cannot report is recorded and asked for by whoever sees the call fail.
//!    After a panic every guarded slot refuses.
//! 8. **The budget bounds the arena.** Resident blocks and ring slots together never
//!    exceed it; a plan that would is refused with the smallest budget that works.
//! 9. **A pass allocates nothing** once its vectors have grown.
//!
//! # Glossary
//!
//! - *arena*: the memory that the budget bounds; here host memory.
//! - *group*: what travels together: weights and states of one layer.
//! - *resident*, *streamed*: in the arena always; in a ring slot while in use.
//! - *state*: what a context writes: KV cache, recurrent states.
//! - *slot*: a piece of the ring that streamed groups take turns in.
//! - *segment*: nodes that run in one launch of the inner backend.
//! - *inner device*: the ggml device that really computes; here the CPU.
//!
//! Start reading at [`device`], then [`pager`].

pub mod cli;
pub mod device;
pub mod error;
pub mod ggml;
pub mod llama;
pub mod pager;
pub mod planner;
pub mod session;
pub mod telemetry;
