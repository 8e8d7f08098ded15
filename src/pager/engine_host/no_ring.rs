//! Systems without io_uring: there is no ring, and nobody to ring for.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::crew::Event;
use super::direct::Read;
use super::progress::Progress;

/// Never made.
#[derive(Debug)]
pub struct Ring(Infallible);

/// Never made.
#[derive(Debug)]
pub struct Bell(Infallible);

impl Ring {
    pub fn new(_depth: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn bell(&self) -> &Arc<Bell> {
        match self.0 {}
    }

    pub fn has_room(&self) -> bool {
        match self.0 {}
    }

    pub fn begin(&mut self, _read: Read, _progress: &Progress) -> Option<Event> {
        match self.0 {}
    }

    pub fn submit(&mut self) -> io::Result<()> {
        match self.0 {}
    }

    pub fn collect(&mut self, _progress: &Progress, _events: &mut Vec<Event>) {
        match self.0 {}
    }

    pub fn sleep(&mut self, _inbox: &Receiver<Event>) -> io::Result<()> {
        match self.0 {}
    }
}

impl Bell {
    pub fn ring(&self) {
        match self.0 {}
    }
}
