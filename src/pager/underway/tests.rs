#![allow(unsafe_code, reason = "events of a device for tests")]
//! Copies that come late, and others.

use std::sync::Arc;
use std::time::Duration;

use async_device::{AsyncDevice, Options};

use super::super::PagerConfig;
use super::super::block::Arena;
use super::super::engine::{Copy, CopyEngine, Counters, Failure, Request};
use super::*;
use crate::ggml::{Event, InnerDevice};
use crate::planner::LookAhead;

/// Copies of tickets with odd numbers take long to come.
#[derive(Debug)]
struct Slow;

const LONG: Duration = Duration::from_millis(20);

impl CopyEngine for Slow {
    fn submit(&mut self, request: Request) -> Result<Ticket, (String, Request)> {
        Err(("nothing is to be copied".to_owned(), request))
    }

    fn wait(&self, ticket: Ticket) -> Result<(), Failure> {
        if ticket.0 % 2 == 1 {
            std::thread::sleep(LONG);
        }
        Ok(())
    }

    fn is_done(&self, _: Ticket) -> bool {
        false
    }

    fn newest(&self) -> Ticket {
        Ticket(0)
    }

    fn forget_failures(&mut self) -> Option<Failure> {
        None
    }

    fn recycled(&mut self) -> Vec<Copy> {
        Vec::new()
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn notices(&mut self) -> Vec<String> {
        Vec::new()
    }
}

fn pager() -> Pager {
    let config = PagerConfig {
        budget_bytes: 0,
        look_ahead: LookAhead::Nothing,
        ..PagerConfig::of_test(Arena::Host)
    };
    Pager::new(config, Box::new(Slow))
}

#[test]
fn copies_that_come_late_are_stalls_of_their_kind() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    // SAFETY: the device outlives its events.
    let inner = unsafe { InnerDevice::from_raw(device.raw()) }.unwrap();
    let segment = || Underway::Segment(Arc::new(Event::new(inner).unwrap()));
    for (file, link) in [(1, 2), (2, 1)] {
        let mut pager = pager();
        let copies = Underway::Copies(Ticket(file), Kind::Storage);
        pager.underway.push(copies);
        pager.underway.push(segment());
        pager
            .underway
            .push(Underway::Copies(Ticket(link), Kind::Link));
        pager.underway.push(segment());
        pager.watch_what_is_underway();
        let (storage, link) = (pager.stalls.storage_seconds, pager.stalls.link_seconds);
        let late = if file == 1 { storage } else { link };
        assert!(late >= LONG.as_secs_f64(), "{storage} {link}");
        // Whoever synchronises the device waits for the last segment.
        assert!(matches!(pager.underway[..], [Underway::Segment(_)]));
    }
}

#[test]
fn a_graph_that_waits_for_no_copies_is_not_watched() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    // SAFETY: the device outlives its events.
    let inner = unsafe { InnerDevice::from_raw(device.raw()) }.unwrap();
    let mut pager = pager();
    pager.note_launched(Some(Arc::new(Event::new(inner).unwrap())));
    assert_eq!(pager.watch_what_is_underway(), 0.0);
    assert_eq!(pager.underway.len(), 1);
    pager.note_launched(None);
    assert!(pager.underway.is_empty() && pager.launched.is_none());
}
