//! The samplers' side of a training buffer: draws by the rule of its kind, and what they are lent as.

use crate::bound::{Bound, Population};
use crate::buffer::Buffer;
use crate::error::BufferError;
use crate::planted::{Bug, planted};
use crate::policy::Kind;
use crate::policy::drain::Drain;
use crate::policy::reservoir::Positions;
use crate::sample::{Sample, SlotGuard};
use crate::slot::Entry;
use crate::sync::{Arc, Ordering, lock, spin_loop};
use std::time::Instant;

/// What must not repeat within a batch that is being drawn.
#[derive(Debug, Default)]
pub(crate) struct BatchCursor {
    positions: Vec<usize>,
    drawn: usize,
}

impl BatchCursor {
    pub(crate) fn clear(&mut self) {
        self.positions.clear();
        self.drawn = 0;
    }

    pub(crate) const fn drawn(&self) -> usize {
        self.drawn
    }

    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.positions.iter().copied()
    }

    /// Goes on with a batch of which so many samples were drawn before a restart.
    pub(crate) fn restore(&mut self, drawn: usize, positions: impl Iterator<Item = usize>) {
        self.drawn = drawn;
        self.positions.clear();
        self.positions.extend(positions);
    }
}

enum Draw<'a> {
    Sample(SlotGuard<'a>),
    /// The batch ends here although samples are left: reception ended while it was drawn, and what comes now could
    /// repeat what it holds.
    EndOfBatch,
    EndOfData,
}

/// A batch of lent samples that is being drawn.
#[derive(Debug, Default)]
pub struct LentBatch {
    cursor: BatchCursor,
    pub samples: Vec<Sample>,
}

impl Buffer {
    /// Draws the next sample of a batch, waiting for it until the deadline. `Ok(None)`: the batch ends here.
    pub(crate) fn draw(
        &self,
        cursor: &mut BatchCursor,
        deadline: Option<Instant>,
    ) -> Result<Option<SlotGuard<'_>>, BufferError> {
        if let Some(draw) = self.try_draw(cursor)? {
            return self.drawn(draw, cursor);
        }
        let start = Instant::now();
        let waited = self.data.wait_until(deadline, || self.try_draw(cursor).transpose());
        if self.drawn.load(Ordering::Relaxed) > 0 {
            self.data_wait_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        self.drawn(waited.ok_or(BufferError::Timeout)??, cursor)
    }

    /// Draws samples for all places, waiting for the first one only: pins are never held while waiting. Returns how many
    /// came; 0: the batch ends here.
    pub(crate) fn claim<'a>(
        &'a self,
        cursor: &mut BatchCursor,
        places: &mut [Option<SlotGuard<'a>>],
        deadline: Option<Instant>,
    ) -> Result<usize, BufferError> {
        let mut count = 0;
        for place in places {
            *place = if count == 0 {
                self.draw(cursor, deadline)?
            } else {
                // Whatever else this says, the next call hears, too.
                match self.try_draw(cursor) {
                    Ok(Some(draw @ Draw::Sample(_))) => self.drawn(draw, cursor)?,
                    _ => None,
                }
            };
            if place.is_none() {
                break;
            }
            count += 1;
        }
        self.drawn.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn drawn<'a>(
        &self,
        draw: Draw<'a>,
        cursor: &mut BatchCursor,
    ) -> Result<Option<SlotGuard<'a>>, BufferError> {
        match draw {
            Draw::Sample(guard) => {
                cursor.drawn += 1;
                Ok(Some(guard))
            }
            Draw::EndOfBatch => Ok(None),
            Draw::EndOfData => Err(BufferError::EndOfData),
        }
    }

    /// `Ok(None)`: nothing to draw now.
    fn try_draw(&self, cursor: &mut BatchCursor) -> Result<Option<Draw<'_>>, BufferError> {
        if let Some(text) = self.failure.get() {
            return Err(BufferError::Failed(text.clone()));
        }
        let closed = self.is_closed();
        let Some(bound) = self.bound.get() else {
            return Ok(closed.then_some(Draw::EndOfData));
        };
        if closed && self.config.kind == Kind::BatchReservoir && !cursor.positions.is_empty() {
            return Ok(Some(Draw::EndOfBatch));
        }
        Ok(match &bound.population {
            Population::Removing(removing) if self.config.pseudo_epochs == 1 => {
                let needed = if closed { 1 } else { self.limiter.needed() };
                let take = |entry: Entry| bound.slab.word(entry.slot).pin_and_retire();
                match removing.remove(needed, &self.draws, take) {
                    Some(entry) => {
                        bound.slab.word(entry.slot).deliver();
                        bound.room.signal_retired(entry.slot);
                        Some(Draw::Sample(SlotGuard::new(bound, entry.slot)))
                    }
                    None if closed => Some(Draw::EndOfData),
                    None => None,
                }
            }
            _ if closed => Some(self.draw_in_drain(bound)),
            Population::Removing(_) => None,
            Population::Positions(positions) => {
                let population = positions.population();
                if population < self.limiter.needed() {
                    None
                } else {
                    self.draw_position(bound, positions, population, cursor)
                }
            }
        })
    }

    /// Uniform over the positions; `None` when reception ended meanwhile.
    fn draw_position<'a>(
        &self,
        bound: &'a Arc<Bound>,
        positions: &Positions,
        population: usize,
        cursor: &mut BatchCursor,
    ) -> Option<Draw<'a>> {
        let distinct = self.config.kind == Kind::BatchReservoir;
        let position = loop {
            let position = self.draws.below(population);
            if !distinct || !cursor.positions.contains(&position) {
                break position;
            }
            if cursor.positions.len() >= population {
                return Some(Draw::EndOfBatch);
            }
        };
        loop {
            let entry = positions.entry(position);
            match bound.slab.pin(entry) {
                Ok(()) => {
                    if distinct {
                        cursor.positions.push(position);
                    }
                    if bound.slab.word(entry.slot).deliver() && !planted(Bug::SeenLost) {
                        bound.slab.push_seen(entry.slot);
                        if !planted(Bug::SeenWakesNobody) {
                            bound.room.signal();
                        }
                    }
                    return Some(Draw::Sample(SlotGuard::new(bound, entry.slot)));
                }
                Err(freed) => {
                    if freed {
                        bound.room.signal();
                    }
                    // Either a successor stands at this position by now, or a drain has taken the sample.
                    if self.is_closed() {
                        return None;
                    }
                    spin_loop();
                }
            }
        }
    }

    /// Asks for the memory that the next draws will need, so that their cache misses are over by then: the words of
    /// the next `count`, and the positions' entries of as many after those. The guesses decide nothing: a wrong one costs
    /// a little time.
    pub(crate) fn look_ahead(&self, count: usize) {
        // A model checker would only explore the guesses.
        let Some(bound) = self.bound.get().filter(|_| !cfg!(any(loom, shuttle))) else { return };
        match &bound.population {
            Population::Positions(positions) => {
                let population = positions.population();
                if population > 0 {
                    for ahead in 0..count {
                        positions.prefetch(self.draws.guess(count + ahead, population));
                        let entry = positions.entry(self.draws.guess(ahead, population));
                        bound.slab.prefetch_word(entry.slot);
                    }
                }
            }
            Population::Removing(removing) => {
                removing.look_ahead(count, &self.draws, |entry| bound.slab.prefetch_word(entry.slot));
            }
        }
    }

    /// Asks for the first bytes of the sample that will be drawn after `ahead` further ones.
    pub(crate) fn prefetch_bytes(&self, ahead: usize) {
        let Some(bound) = self.bound.get().filter(|_| !cfg!(any(loom, shuttle))) else { return };
        if let Population::Positions(positions) = &bound.population {
            let population = positions.population();
            if population > 0 {
                bound.slab.prefetch_bytes(positions.entry(self.draws.guess(ahead, population)).slot);
            }
        }
    }

    fn draw_in_drain<'a>(&self, bound: &'a Arc<Bound>) -> Draw<'a> {
        let mut drain = lock(&bound.drain);
        let drain =
            drain.get_or_insert_with(|| Drain::new(bound.entries(), self.config.pseudo_epochs, &self.draws));
        let Some(ticket) = drain.next(&self.draws) else { return Draw::EndOfData };
        let slot = ticket.entry.slot;
        let word = bound.slab.word(slot);
        if ticket.last {
            word.pin_and_retire();
        } else {
            // Only this drain takes samples out, and it does so under the lock that is held here.
            let pinned = word.pin(ticket.entry.generation);
            debug_assert!(pinned.is_ok());
        }
        word.deliver();
        match &bound.population {
            Population::Positions(positions) => positions.set_population(ticket.left),
            Population::Removing(removing) => removing.set_population(ticket.left),
        }
        Draw::Sample(SlotGuard::new(bound, slot))
    }

    /// Lends a drawn sample to the user.
    fn lend(&self, guard: &SlotGuard<'_>) -> Sample {
        let sample = Sample::view(guard).unwrap_or_else(|| Sample::copy(guard));
        if sample.is_copy() && self.view_copies.fetch_add(1, Ordering::Relaxed) == 0 {
            log::warn!(
                "more than {} samples are held at once (SimulationData kept by user code?): further ones are copies, \
                 so that reception goes on",
                guard.bound.lent_limit
            );
        }
        sample
    }

    /// One sample, lent.
    ///
    /// # Errors
    /// `EndOfData`, `Timeout` at the deadline, `Failed`.
    pub fn get(&self, deadline: Option<Instant>) -> Result<Sample, BufferError> {
        let mut guard = [None];
        self.claim(&mut BatchCursor::default(), &mut guard, deadline)?;
        let [guard] = guard;
        guard.map(|guard| self.lend(&guard)).ok_or(BufferError::EndOfData)
    }

    /// Draws samples into `batch` until it holds `nb_samples`, or the batch is to end earlier (then it is what is
    /// there, at least one sample).
    ///
    /// # Errors
    /// As `get`; samples drawn before a `Timeout` stay in `batch`, and a further call goes on.
    pub fn get_batch(
        &self,
        batch: &mut LentBatch,
        nb_samples: usize,
        deadline: Option<Instant>,
    ) -> Result<(), BufferError> {
        while batch.samples.len() < nb_samples {
            let mut guard = [None];
            match self.claim(&mut batch.cursor, &mut guard, deadline) {
                Ok(0) => break,
                Ok(_) => batch.samples.extend(guard.iter().flatten().map(|guard| self.lend(guard))),
                Err(BufferError::EndOfData) if !batch.samples.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The sample at a place of the population, lent without counting as a delivery; `None` past its end.
    pub fn peek(&self, index: usize) -> Option<Sample> {
        let bound = self.bound.get()?;
        loop {
            let entry = self.current_entry(bound, index)?;
            match bound.slab.pin(entry) {
                Ok(()) => return Some(self.lend(&SlotGuard::new(bound, entry.slot))),
                Err(freed) => {
                    if freed {
                        bound.room.signal();
                    }
                }
            }
        }
    }

    fn current_entry(&self, bound: &Arc<Bound>, index: usize) -> Option<Entry> {
        match &*lock(&bound.drain) {
            Some(drain) => drain.entries().get(index).copied(),
            None => bound.entry(index),
        }
    }

    pub(crate) fn current_entries(&self, bound: &Arc<Bound>) -> Vec<Entry> {
        match &*lock(&bound.drain) {
            Some(drain) => drain.entries().to_vec(),
            None => bound.entries(),
        }
    }
}
