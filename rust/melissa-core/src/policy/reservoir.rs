//! Reservoir: a get leaves the sample where it is; a new sample takes the place of one that was seen.
//!
//! Positions are written by one writer and read by any number of samplers without a lock. A sampler that finds that
//! the sample of its position has just left looks at the same position again, where the successor already stands:
//! so a position that is being replaced is drawn as often as any other.

use crate::rng::CounterRng;
use crate::slab::Slab;
use crate::slot::Entry;
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// The samplers' side: which sample stands at which position.
#[derive(Debug)]
pub(crate) struct Positions {
    entries: Box<[AtomicU64]>,
    population: AtomicUsize,
}

impl Positions {
    pub(crate) fn new(capacity: usize) -> Self {
        let entries = (0..capacity).map(|_| AtomicU64::new(0)).collect();
        Self { entries, population: AtomicUsize::new(0) }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Positions 0 up to this one hold a sample.
    pub(crate) fn population(&self) -> usize {
        // SYNC(population): pairs with the release in `append`.
        self.population.load(Ordering::Acquire)
    }

    pub(crate) fn entry(&self, position: usize) -> Entry {
        // SYNC(position): pairs with the releases in `append` and `replace`.
        Entry::unpack(self.entries[position].load(Ordering::Acquire))
    }

    /// The writer's: a further position.
    pub(crate) fn append(&self, entry: Entry) {
        let position = self.population.load(Ordering::Relaxed);
        // SYNC(position), SYNC(population)
        self.entries[position].store(entry.pack(), Ordering::Release);
        self.population.store(position + 1, Ordering::Release);
    }

    /// The writer's: a successor at a position. The successor must be published before, and the old sample retired
    /// after this call.
    pub(crate) fn replace(&self, position: usize, entry: Entry) {
        // SYNC(position)
        self.entries[position].store(entry.pack(), Ordering::Release);
    }

    /// The population in a drain, which takes samples out without touching the positions.
    pub(crate) fn set_population(&self, population: usize) {
        self.population.store(population, Ordering::Release);
    }
}

/// The writer's side: which positions hold a sample that was seen.
#[derive(Debug)]
pub(crate) struct Evictable {
    /// Position of each slot that is in the population.
    position_of: Vec<u32>,
    /// Positions whose sample was seen, in order of first sight but for the swaps of removals.
    positions: Vec<u32>,
    /// Scratch for the list of first sights.
    seen: Vec<u32>,
    rng: CounterRng,
}

impl Evictable {
    pub(crate) fn new(slots: usize, capacity: usize, rng: CounterRng) -> Self {
        Self {
            position_of: vec![0; slots],
            positions: Vec::with_capacity(capacity),
            seen: Vec::with_capacity(capacity),
            rng,
        }
    }

    pub(crate) fn placed(&mut self, slot: u32, position: usize) {
        self.position_of[slot as usize] = position as u32;
    }

    /// Learns of first sights, in the order in which they happened: with one sampler the choice of victims then
    /// depends on the order of publishes and draws only, not on when the writer looked.
    pub(crate) fn learn(&mut self, slab: &Slab) {
        slab.take_seen(&mut self.seen);
        let position_of = &self.position_of;
        self.positions.extend(self.seen.drain(..).map(|slot| position_of[slot as usize]));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Chooses a position whose sample goes, uniformly over those that were seen.
    pub(crate) fn choose(&mut self) -> Option<usize> {
        let count = self.positions.len();
        (count > 0).then(|| self.positions.swap_remove(self.rng.below(count)) as usize)
    }
}
