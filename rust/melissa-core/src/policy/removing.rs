//! FIFO and FIRO: a get takes the sample out of the population.

use crate::memory::{self, Apart};
use crate::rng::CounterRng;
use crate::slot::Entry;
use crate::sync::{AtomicUsize, Mutex, Ordering, lock};
use std::collections::VecDeque;

/// Published samples in order of arrival (FIFO) or in no order (FIRO).
///
/// The lock is held for the few instructions that change the index, never while a payload is copied.
#[derive(Debug)]
pub(crate) struct Removing {
    random: bool,
    capacity: usize,
    entries: Apart<Mutex<VecDeque<Entry>>>,
    /// The length of `entries`, for those who only look.
    population: AtomicUsize,
}

impl Removing {
    pub(crate) fn new(random: bool, capacity: usize) -> Self {
        let entries = Vec::with_capacity(capacity);
        memory::prefer_huge_pages(&entries);
        let entries = Apart(Mutex::new(VecDeque::from(entries)));
        Self { random, capacity, entries, population: AtomicUsize::new(0) }
    }

    pub(crate) fn population(&self) -> usize {
        self.population.load(Ordering::Acquire)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.population() < self.capacity
    }

    /// Adds the entry that `publish` gives if there is room; `publish` runs under the lock.
    pub(crate) fn add(&self, publish: impl FnOnce() -> Option<Entry>) -> bool {
        let mut entries = lock(&self.entries);
        if entries.len() >= self.capacity {
            return false;
        }
        let Some(entry) = publish() else { return false };
        entries.push_back(entry);
        self.population.store(entries.len(), Ordering::Release);
        true
    }

    /// Takes the next entry if the population is at least `needed`; `take` pins and retires it under the lock.
    pub(crate) fn remove(&self, needed: usize, rng: &CounterRng, take: impl FnOnce(Entry)) -> Option<Entry> {
        let mut entries = lock(&self.entries);
        if entries.len() < needed.max(1) {
            return None;
        }
        let entry = if self.random {
            let index = rng.below(entries.len());
            entries.swap_remove_back(index)
        } else {
            entries.pop_front()
        }?;
        take(entry);
        self.population.store(entries.len(), Ordering::Release);
        Some(entry)
    }

    /// Shows the entries that the next calls of `remove` will likely take, if who takes at random may do so.
    pub(crate) fn look_ahead(&self, count: usize, rng: &CounterRng, mut see: impl FnMut(Entry)) {
        if !self.random || cfg!(any(loom, shuttle)) {
            return;
        }
        let entries = lock(&self.entries);
        let guess = |ahead| (entries.len() > ahead).then(|| rng.guess(ahead, entries.len() - ahead));
        for ahead in 0..count {
            if let Some(entry) = guess(count + ahead).and_then(|index| entries.get(index)) {
                memory::prefetch(entry);
            }
            if let Some(entry) = guess(ahead).and_then(|index| entries.get(index)) {
                see(*entry);
            }
        }
    }

    /// The population in a drain, which takes samples out without touching the index.
    pub(crate) fn set_population(&self, population: usize) {
        self.population.store(population, Ordering::Release);
    }

    /// What `look` makes of the population, oldest first for a FIFO, while nobody changes it.
    pub(crate) fn with_entries<T>(&self, look: impl FnOnce(&VecDeque<Entry>) -> T) -> T {
        look(&lock(&self.entries))
    }

    /// The entry at a place of the population.
    pub(crate) fn entry(&self, index: usize) -> Option<Entry> {
        lock(&self.entries).get(index).copied()
    }

    /// The population now, oldest first for a FIFO.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        lock(&self.entries).iter().copied().collect()
    }
}
