//! What a training buffer consists of once the fields' sizes are known, and who waits for room in it.

use crate::memory::Apart;
use crate::planted::{Bug, planted};
use crate::policy::drain::Drain;
use crate::policy::removing::Removing;
use crate::policy::reservoir::{Evictable, Positions};
use crate::slab::Slab;
use crate::slot::Entry;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, OnceLock, Ordering, Waiters, fence, lock};

/// Those who wait for a free slot or for room in the population.
#[derive(Default)]
pub(crate) struct Room {
    wanted: AtomicBool,
    pub(crate) waiters: Waiters,
    pub(crate) waker: OnceLock<Arc<dyn Fn() + Send + Sync>>,
    /// No slot was free when one was asked for; whoever holds pins on samples that have left the population looks here.
    starved: AtomicBool,
    pub(crate) pin_holders: Waiters,
    /// A checkpoint holds pins, and wants to know which of its samples have left the population.
    saving: AtomicBool,
    retired: Mutex<Vec<u32>>,
}

impl Room {
    /// Says that a slot or room is wanted. The caller looks once more afterwards.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
        // SYNC(room): pairs with the fence in `signal`.
        if !planted(Bug::WeakWant) {
            fence(Ordering::SeqCst);
        }
    }

    /// Tells those who hold pins for long that a slot was asked for in vain.
    pub(crate) fn starve(&self) {
        self.starved.store(true, Ordering::Relaxed);
        self.pin_holders.notify();
    }

    /// Whether a slot was asked for in vain since the last time.
    pub(crate) fn has_starved(&self) -> bool {
        self.starved.swap(false, Ordering::Relaxed)
    }

    /// Has slots noted whose sample leaves the population under a pin, or no longer; either way forgets those noted.
    /// What has left before is found in the slots' words.
    pub(crate) fn set_saving(&self, saving: bool) {
        self.saving.store(saving, Ordering::Relaxed);
        // SYNC(saving): pairs with the fences in `note_retired` and `signal_retired`: either the sampler sees that there is a
        // checkpoint, or the checkpoint that the sample has left.
        fence(Ordering::SeqCst);
        lock(&self.retired).clear();
    }

    /// To be called when a sample has left the population and its slot may be pinned.
    pub(crate) fn note_retired(&self, slot: u32) {
        // SYNC(saving)
        fence(Ordering::SeqCst);
        self.note(slot);
    }

    /// `note_retired` and `signal` at once.
    pub(crate) fn signal_retired(&self, slot: u32) {
        // SYNC(room), SYNC(saving)
        fence(Ordering::SeqCst);
        self.note(slot);
        self.wake();
    }

    fn note(&self, slot: u32) {
        if self.saving.load(Ordering::Relaxed) {
            lock(&self.retired).push(slot);
        }
    }

    /// The slots that were noted since the last time.
    pub(crate) fn take_retired(&self) -> Vec<u32> {
        std::mem::take(&mut *lock(&self.retired))
    }

    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(crate) fn nb_retired(&self) -> usize {
        lock(&self.retired).len()
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// To be called after a slot became free, a sample was seen for the first time, or the population shrank.
    pub(crate) fn signal(&self) {
        // SYNC(room): pairs with the fence in `want`.
        fence(Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::Relaxed) {
            if let Some(waker) = self.waker.get() {
                waker();
            }
            self.waiters.notify();
        }
    }
}

/// Where the published samples stand.
#[allow(clippy::large_enum_variant, reason = "there is one of it in a buffer")]
pub(crate) enum Population {
    Removing(Removing),
    Positions(Positions),
}

/// What belongs to the one who publishes; the session's, and a `put`'s from Python.
pub(crate) struct Writer {
    pub(crate) free: Vec<u32>,
    pub(crate) evictable: Evictable,
}

/// Everything that exists once the schema is known. Aligned like what it sets apart, and so apart from its own reference count.
pub(crate) struct Bound {
    pub(crate) slab: Slab,
    pub(crate) population: Population,
    pub(crate) writer: Apart<Mutex<Writer>>,
    pub(crate) drain: Mutex<Option<Drain>>,
    pub(crate) lent: Apart<AtomicUsize>,
    pub(crate) lent_limit: usize,
    pub(crate) room: Arc<Room>,
}

impl Bound {
    /// Lets go of a pin.
    pub(crate) fn unpin(&self, slot: u32) {
        if planted(Bug::SignalUnderPin) {
            self.room.signal();
            let release = self.slab.word(slot).unpin();
            self.slab.released(slot, release);
            return;
        }
        let release = self.slab.word(slot).unpin();
        if self.slab.released(slot, release) {
            self.room.signal();
        }
    }

    /// The population before a drain, in order of arrival or of position.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        match &self.population {
            Population::Removing(removing) => removing.entries(),
            Population::Positions(positions) => {
                (0..positions.population()).map(|position| positions.entry(position)).collect()
            }
        }
    }

    /// The entry at a place of what `entries` gives.
    pub(crate) fn entry(&self, index: usize) -> Option<Entry> {
        match &self.population {
            Population::Removing(removing) => removing.entry(index),
            Population::Positions(positions) => {
                (index < positions.population()).then(|| positions.entry(index))
            }
        }
    }

    pub(crate) fn population(&self) -> usize {
        match &self.population {
            Population::Removing(removing) => removing.population(),
            Population::Positions(positions) => positions.population(),
        }
    }
}
