//! The end: once reception is over, every sample left is delivered, in a random order that is fixed once.

use crate::planted::{Bug, planted};
use crate::rng::CounterRng;
use crate::slot::Entry;

/// Tickets for the samples left, handed out one by one under the lock that owns this.
#[derive(Debug)]
pub(crate) struct Drain {
    order: Vec<Entry>,
    next: usize,
    passes_left: u32,
}

/// A sample's turn in the drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    pub(crate) entry: Entry,
    /// No further pass delivers this sample: it leaves the population.
    pub(crate) last: bool,
    /// Samples that stay in the population after this one.
    pub(crate) left: usize,
}

impl Drain {
    /// `passes` deliveries of each sample, each pass in a fresh order.
    pub(crate) fn new(mut entries: Vec<Entry>, passes: u32, rng: &CounterRng) -> Self {
        rng.shuffle(&mut entries);
        Self { order: entries, next: 0, passes_left: passes }
    }

    /// A drain that stands at ticket `next` of a pass; `entries` are the samples still in the population.
    pub(crate) const fn restored(entries: Vec<Entry>, next: usize, passes_left: u32) -> Self {
        Self { order: entries, next, passes_left }
    }

    /// Tickets of this pass that were handed out.
    pub(crate) const fn next_ticket(&self) -> usize {
        self.next
    }

    /// Passes that are not over, this one included.
    pub(crate) const fn passes_left(&self) -> u32 {
        self.passes_left
    }

    pub(crate) fn next(&mut self, rng: &CounterRng) -> Option<Ticket> {
        if self.next == self.order.len() {
            if self.passes_left <= 1 {
                return None;
            }
            self.passes_left -= 1;
            self.next = 0;
            rng.shuffle(&mut self.order);
        }
        let twice = planted(Bug::TicketTwice) && self.next == 1;
        let entry = *self.order.get(if twice { 0 } else { self.next })?;
        self.next += 1;
        let last = self.passes_left <= 1;
        let left = if last { self.order.len() - self.next } else { self.order.len() };
        Some(Ticket { entry, last, left })
    }

    /// Deliveries still to come.
    pub(crate) fn remaining(&self) -> usize {
        self.order.len() * self.passes_left.saturating_sub(1) as usize + self.order.len() - self.next
    }

    /// Samples still in the population.
    pub(crate) fn entries(&self) -> &[Entry] {
        if self.passes_left <= 1 { &self.order[self.next..] } else { &self.order }
    }
}
