//! A cut through a training buffer, and a buffer that goes on from it.
//!
//! The cut is two things. [`SnapshotState`] is plain data: what the population is, in which order, and where both random
//! generators stand; it holds everything that the next draws and evictions depend on. [`PinnedSamples`] are the
//! payloads: each sample of the cut under a pin, so that its bytes can be saved after the cut, without a copy, while
//! publishing and drawing go on. A pinned sample may leave the population meanwhile; its slot is free when its pin goes.
//!
//! What is restored may come from a damaged file: nothing in a state is trusted ([`state`], [`restore`]).

mod restore;
mod state;

pub use restore::RestoredSample;
pub use state::{DrainState, FieldState, SampleState, SnapshotError, SnapshotState};

use crate::bound::{Bound, Population};
use crate::buffer::Buffer;
use crate::error::BufferError;
use crate::policy::limiter::Limiter;
use crate::sample::{Sample, SampleKey, SlotGuard};
use crate::schema::Schema;
use crate::slot::Entry;
use crate::sync::{Arc, Ordering, lock};
use std::fmt;
use std::mem::ManuallyDrop;

/// What [`Buffer::snapshot`] gives.
#[derive(Debug)]
pub struct Snapshot {
    pub state: SnapshotState,
    /// The payloads, in the order of `state.samples`.
    pub samples: PinnedSamples,
}

/// The samples of a cut that were not taken yet, each under a pin; dropped, it lets go of them.
pub struct PinnedSamples {
    bound: Arc<Bound>,
    slots: std::vec::IntoIter<u32>,
}

impl PinnedSamples {
    /// The slots with their pins, which are the caller's from now on.
    pub(crate) fn into_slots(mut self) -> (Arc<Bound>, Vec<u32>) {
        (Arc::clone(&self.bound), std::mem::take(&mut self.slots).collect())
    }

    pub(crate) fn schema(&self) -> Arc<Schema> {
        Arc::clone(self.bound.slab.schema())
    }
}

impl Iterator for PinnedSamples {
    type Item = Sample;

    /// The next sample with its pin, which goes when the sample is dropped.
    fn next(&mut self) -> Option<Sample> {
        self.slots.next().map(|slot| Sample::pinned(&self.bound, slot))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.slots.size_hint()
    }
}

impl ExactSizeIterator for PinnedSamples {}

impl Drop for PinnedSamples {
    fn drop(&mut self) {
        for slot in self.slots.by_ref() {
            self.bound.unpin(slot);
        }
    }
}

impl fmt::Debug for PinnedSamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedSamples").field("left", &self.len()).finish()
    }
}

/// The population of a cut: its samples, where they lie, and how far the draws were when they were there.
struct Cut {
    samples: Vec<SampleState>,
    pins: PinnedSamples,
    draws: u64,
}

impl Buffer {
    /// Takes a cut between two batches: what a buffer after a restart goes on from ([`Buffer::restore`]).
    ///
    /// Publication stands still while the cut is taken, which costs a few cache lines per sample and copies no payload;
    /// it goes on while the payloads are saved. There is one sampler at a time, and it is the caller's to hold it still
    /// between two batches: a batch that is being drawn is no part of the cut. A sampler that draws beside the cut does
    /// no harm, but what a reservoir delivers to it then, a restart may deliver again. No part of the cut either: pauses,
    /// views that are out, bodies that are being received or wait for room.
    ///
    /// A pinned sample that is evicted keeps its slot from reception until it is taken and dropped.
    ///
    /// # Errors
    /// `Unbound` before the fields' sizes are known: a new buffer is what a restart needs then. `Failed`.
    pub fn snapshot(&self) -> Result<Snapshot, BufferError> {
        if let Some(text) = self.failure() {
            return Err(BufferError::Failed(text.to_string()));
        }
        let bound = self.bound.get().ok_or(BufferError::Unbound)?;
        // Nothing is published, evicted or drained while these are held; nobody takes them the other way round.
        let mut writer = lock(&bound.writer);
        let drain = lock(&bound.drain);
        // When the writer learns of first sights makes no difference to what it chooses later: their order does.
        writer.evictable.learn(&bound.slab);
        let evictable = match (&*drain, &bound.population) {
            (None, Population::Positions(_)) => writer.evictable.positions().to_vec(),
            _ => Vec::new(),
        };
        let mut cut = match (&*drain, &bound.population) {
            (Some(drain), _) => self.cut(bound, drain.entries().iter().copied()),
            (None, Population::Removing(removing)) => {
                removing.with_entries(|entries| self.cut(bound, entries.iter().copied()))
            }
            (None, Population::Positions(_)) => self.cut(bound, bound.entries().into_iter()),
        }?;
        let turn = drain.as_ref().map(|drain| DrainState {
            next: if drain.passes_left() > 1 { drain.next_ticket() as u64 } else { 0 },
            passes_left: drain.passes_left(),
        });
        if self.config.kind.keeps_samples() && turn.is_none() {
            // A first sight beside the cut that the writer has not been told of: for the cut it is yet to come.
            let mut seen = vec![false; cut.samples.len()];
            for position in &evictable {
                seen[*position as usize] = true;
            }
            for (sample, seen) in cut.samples.iter_mut().zip(seen) {
                sample.deliveries = if seen { sample.deliveries.max(1) } else { 0 };
            }
        }
        let schema = bound.slab.schema();
        let mut state = SnapshotState {
            kind: self.config.kind.name().to_string(),
            capacity: self.config.capacity as u64,
            watermark: self.config.watermark as u64,
            pseudo_epochs: self.config.pseudo_epochs,
            batch_size: self.config.batch_size as u64,
            fields: FieldState::of(schema),
            nb_parameters: schema.nb_parameters() as u64,
            samples: cut.samples,
            evictable,
            drain: turn,
            closed: self.is_closed(),
            watermark_lifted: self.limiter.needed() < Limiter::new(&self.config).needed(),
            draws: cut.draws,
            evictions: writer.evictable.rng().state(),
            published: self.published.load(Ordering::Relaxed),
            drawn: self.drawn.load(Ordering::Relaxed),
        };
        // A sampler beside the cut counts a draw some time after it has taken the sample: what is gone from the cut tells
        // how many there were; of a reservoir's, it tells the least.
        let least = state.least_drawn();
        state.drawn = if self.config.kind.keeps_samples() { state.drawn.max(least) } else { least };
        Ok(Snapshot { state, samples: cut.pins })
    }

    /// Pins samples. The caller holds what keeps them in the population.
    fn cut(
        &self,
        bound: &Arc<Bound>,
        entries: impl ExactSizeIterator<Item = Entry>,
    ) -> Result<Cut, BufferError> {
        let mut slots = Vec::with_capacity(entries.len());
        let mut samples = Vec::with_capacity(entries.len());
        let mut pinned = true;
        for entry in entries {
            if bound.slab.pin(entry).is_err() {
                pinned = false;
                break;
            }
            // The guard is the way to the key; the pin stays.
            let guard = ManuallyDrop::new(SlotGuard { bound, slot: entry.slot });
            let SampleKey { simulation, draw, time_step } = guard.key();
            let deliveries = bound.slab.word(entry.slot).deliveries();
            samples.push(SampleState { simulation, draw, time_step, deliveries });
            slots.push(entry.slot);
        }
        let pins = PinnedSamples { bound: Arc::clone(bound), slots: slots.into_iter() };
        if pinned {
            return Ok(Cut { samples, pins, draws: self.draws.state() });
        }
        let text = "a sample left the training buffer while a snapshot held it; this is a defect of Melissa";
        Err(BufferError::Failed(text.to_string()))
    }
}
