//! Reservoir: a get leaves the sample where it is; a new sample takes the place of one that was seen.
//!
//! Positions are written by one writer and read by any number of samplers without a lock. A sampler that finds that
//! the sample of its position has just left looks at the same position again, where the successor already stands:
//! so a position that is being replaced is drawn as often as any other.

use crate::memory;
use crate::planted::{Bug, planted};
use crate::rng::CounterRng;
use crate::slab::Slab;
use crate::slot::Entry;
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

fn release() -> Ordering {
    if planted(Bug::WeakPublish) { Ordering::Relaxed } else { Ordering::Release }
}

/// The samplers' side: which sample stands at which position.
#[derive(Debug)]
pub(crate) struct Positions {
    entries: Box<[AtomicU64]>,
    population: AtomicUsize,
}

impl Positions {
    pub(crate) fn new(capacity: usize) -> Self {
        let entries = memory::boxed_slice(capacity, || AtomicU64::new(0));
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

    /// Where the entry of a position lies, to be prefetched.
    pub(crate) fn address(&self, position: usize) -> *const u8 {
        std::ptr::from_ref(&self.entries[position]).cast()
    }

    pub(crate) fn prefetch(&self, position: usize) {
        memory::prefetch(self.address(position));
    }

    /// The writer's: a further position.
    pub(crate) fn append(&self, entry: Entry) {
        let position = self.population.load(Ordering::Relaxed);
        // SYNC(position), SYNC(population)
        self.entries[position].store(entry.pack(), release());
        self.population.store(position + 1, release());
    }

    /// The writer's: a successor at a position. The successor must be published before, and the old sample retired
    /// after this call.
    pub(crate) fn replace(&self, position: usize, entry: Entry) {
        // SYNC(position)
        self.entries[position].store(entry.pack(), release());
    }

    /// The population in a drain, which takes samples out without touching the positions.
    pub(crate) fn set_population(&self, population: usize) {
        self.population.store(population, Ordering::Release);
    }
}

/// The writer's side: which positions hold a sample that was seen.
#[derive(Debug)]
pub(crate) struct Evictable {
    /// Positions whose sample was seen, in order of first sight but for the swaps of removals.
    positions: Vec<u32>,
    /// Scratch for the list of first sights.
    seen: Vec<u32>,
    rng: CounterRng,
}

impl Evictable {
    pub(crate) fn new(capacity: usize, rng: CounterRng) -> Self {
        let places = Vec::with_capacity(capacity);
        memory::prefer_huge_pages(&places);
        Self { positions: places, seen: Vec::with_capacity(capacity), rng }
    }

    /// Learns of first sights, in the order in which they happened: with one sampler the choice of victims then
    /// depends on the order of publishes and draws only, not on when the writer looked.
    pub(crate) fn learn(&mut self, slab: &Slab) {
        slab.take_seen(&mut self.seen);
        self.positions.extend(self.seen.drain(..).map(|slot| slab.position(slot)));
    }

    /// The positions that can be chosen, in the order that the choice depends on.
    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Takes over the positions of another index, in their order.
    pub(crate) fn restore(&mut self, positions: &[u32]) {
        self.positions.clear();
        self.positions.extend_from_slice(positions);
    }

    pub(crate) const fn rng(&self) -> &CounterRng {
        &self.rng
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Chooses a position whose sample goes, uniformly over those that were seen.
    pub(crate) fn choose(&mut self) -> Option<usize> {
        let count = self.positions.len();
        (count > 0).then(|| self.positions.swap_remove(self.rng.below(count)) as usize)
    }

    /// Where the next choices will look: the place in this list and the position's entry, each for another choice, so that
    /// each address can be told from what was asked for before; and the slot of the next victim, which will most likely
    /// be the next to be filled. Guesses, which decide nothing.
    pub(crate) fn look_ahead(&self, entries: &Positions) -> Option<([*const u8; 2], u32)> {
        let count = self.positions.len();
        let place = |ahead| &self.positions[self.rng.guess(ahead, count)];
        (count > 0).then(|| {
            let addresses = [std::ptr::from_ref(place(2)).cast(), entries.address(*place(1) as usize)];
            (addresses, entries.entry(*place(0) as usize).slot)
        })
    }
}
