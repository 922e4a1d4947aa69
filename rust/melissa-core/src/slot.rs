//! The state of one slot in one atomic word, and the two ways to its bytes.
//!
//! A slot goes `Free -> Filling -> Published -> Retired -> Free`. The word holds the state, a generation that grows
//! each time the slot becomes free, the mark of its first sight, and the number of pins. Every change is a
//! read-modify-write, so pins that come and go beside a change of state are never lost:
//!
//! * `Free -> Filling` and `Filling -> Published` are done by the one [`SlotWriter`] of the slot,
//! * `Published -> Retired` by whoever takes the sample out of the population,
//! * `Retired -> Free` by whoever finds the slot retired without pins: the last reader, or the one who retired it.
//!
//! A sampler pins first and checks the state and generation afterwards. A pin that found another state only delays
//! the slot's return; no byte is read under it.

use crate::planted::{Bug, planted};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const PINS: u64 = (1 << 20) - 1;
const STATE_ONE: u64 = 1 << 20;
const STATE: u64 = 0b11 << 20;
const SEEN: u64 = 1 << 22;
const GENERATION_SHIFT: u32 = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Free,
    Filling,
    Published,
    Retired,
}

const fn state(word: u64) -> State {
    match (word & STATE) / STATE_ONE {
        0 => State::Free,
        1 => State::Filling,
        2 => State::Published,
        _ => State::Retired,
    }
}

const fn generation(word: u64) -> u32 {
    (word >> GENERATION_SHIFT) as u32
}

/// A published sample: its slot and the generation in which it was published.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Entry {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Entry {
    pub(crate) const fn pack(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    pub(crate) const fn unpack(word: u64) -> Self {
        Self { slot: word as u32, generation: (word >> 32) as u32 }
    }
}

/// What happened to the slot when a pin or the population let go of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Release {
    /// It is still published or still pinned.
    Held,
    /// It became free by this call; the caller puts it on the list of free slots.
    Freed,
}

/// The word of a slot and its links in the two lists that it can be on.
#[derive(Debug)]
pub(crate) struct SlotWord {
    word: AtomicU64,
    /// Times the sample was drawn since it was published.
    deliveries: AtomicU32,
    /// How many samples were published before it.
    ordinal: AtomicU64,
    /// Link of the list of slots that became free.
    pub(crate) next_free: AtomicU32,
    /// Link of the list of slots seen for the first time.
    pub(crate) next_seen: AtomicU32,
    /// Where the sample stands in a reservoir; read and written by the writer of the positions alone.
    pub(crate) position: AtomicU32,
}

impl SlotWord {
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            deliveries: AtomicU32::new(0),
            ordinal: AtomicU64::new(0),
            next_free: AtomicU32::new(0),
            next_seen: AtomicU32::new(0),
            position: AtomicU32::new(0),
        }
    }

    /// `Free -> Filling`, by the owner of the free list.
    pub(crate) fn claim(&self) {
        let before = self.word.fetch_add(STATE_ONE, Ordering::Relaxed);
        debug_assert_eq!(state(before), State::Free);
    }

    /// `Filling -> Free`: the body was never completed.
    pub(crate) fn unclaim(&self) {
        let before = self.word.fetch_sub(STATE_ONE, Ordering::Relaxed);
        debug_assert_eq!(state(before), State::Filling);
    }

    /// `Filling -> Published`; everything written to the slot before is visible to who pins it afterwards.
    pub(crate) fn publish(&self) -> u32 {
        self.deliveries.store(0, Ordering::Relaxed);
        // SYNC(publish): pairs with the acquire in `pin`.
        let order = if planted(Bug::WeakPublish) { Ordering::Relaxed } else { Ordering::Release };
        let before = self.word.fetch_add(STATE_ONE, order);
        debug_assert_eq!(state(before), State::Filling);
        generation(before)
    }

    /// Pins the sample if it is still the published one of that generation. `Err` says what letting go of the vain
    /// pin did.
    pub(crate) fn pin(&self, wanted: u32) -> Result<(), Release> {
        // SYNC(publish): pairs with the release in `publish`.
        let before = self.word.fetch_add(1, Ordering::Acquire);
        debug_assert!(before & PINS < PINS);
        let there = state(before) == State::Published && generation(before) == wanted;
        if there || planted(Bug::PinUnchecked) { Ok(()) } else { Err(self.unpin()) }
    }

    /// A further pin on a slot that the caller has pinned.
    pub(crate) fn pin_again(&self) {
        let before = self.word.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before & PINS > 0);
    }

    /// Pins a sample and takes it out of the population in one step; only for who holds the lock of the population.
    pub(crate) fn pin_and_retire(&self) {
        // SYNC(publish): pairs with the release in `publish`.
        let before = self.word.fetch_add(STATE_ONE + 1, Ordering::AcqRel);
        debug_assert_eq!(state(before), State::Published);
    }

    pub(crate) fn unpin(&self) -> Release {
        // SYNC(reuse): pairs with the acquire in `try_free`: reads under this pin end before the slot is written anew.
        let order = if planted(Bug::WeakUnpin) { Ordering::Relaxed } else { Ordering::Release };
        let before = self.word.fetch_sub(1, order);
        debug_assert!(before & PINS > 0);
        if before & PINS == 1 && state(before) == State::Retired { self.try_free() } else { Release::Held }
    }

    /// `Published -> Retired`: the sample left the population.
    pub(crate) fn retire(&self) -> Release {
        let before = self.word.fetch_add(STATE_ONE, Ordering::Release);
        debug_assert_eq!(state(before), State::Published);
        if before & PINS == 0 || planted(Bug::FreedUnderPin) { self.try_free() } else { Release::Held }
    }

    /// The sample has left the population, and somebody holds a pin on it still.
    pub(crate) fn is_retired(&self) -> bool {
        state(self.word.load(Ordering::Relaxed)) == State::Retired
    }

    /// `Retired -> Free` if nobody holds a pin. Several may try; one succeeds, and who pinned in between tries
    /// again when it unpins.
    fn try_free(&self) -> Release {
        let mut word = self.word.load(Ordering::Relaxed);
        while state(word) == State::Retired && (word & PINS == 0 || planted(Bug::FreedUnderPin)) {
            let free = u64::from(generation(word).wrapping_add(1)) << GENERATION_SHIFT;
            // SYNC(reuse): pairs with the release in `unpin`.
            match self.word.compare_exchange_weak(word, free, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Release::Freed,
                Err(now) => word = now,
            }
        }
        Release::Held
    }

    /// Counts a delivery; true for the first one of this generation. Only under a pin.
    pub(crate) fn deliver(&self) -> bool {
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        // The plain load keeps the line shared in the common case of a sample seen long ago.
        self.word.load(Ordering::Relaxed) & SEEN == 0
            && self.word.fetch_or(SEEN, Ordering::Relaxed) & SEEN == 0
    }

    /// Takes over the deliveries of a sample that is restored; one that was seen is not seen for the first time again.
    pub(crate) fn delivered_before(&self, deliveries: u32) {
        self.deliveries.store(deliveries, Ordering::Relaxed);
        if deliveries > 0 {
            self.word.fetch_or(SEEN, Ordering::Relaxed);
        }
    }

    /// To be called before the sample is published.
    pub(crate) fn set_ordinal(&self, ordinal: u64) {
        self.ordinal.store(ordinal, Ordering::Relaxed);
    }

    pub(crate) fn ordinal(&self) -> u64 {
        self.ordinal.load(Ordering::Relaxed)
    }

    pub(crate) fn deliveries(&self) -> u32 {
        self.deliveries.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_becomes_free_once_when_its_last_pin_goes() {
        let slot = SlotWord::new();
        slot.claim();
        let generation = slot.publish();
        assert_eq!(slot.pin(generation), Ok(()));
        slot.pin_again();
        assert_eq!(slot.retire(), Release::Held);
        assert_eq!(slot.pin(generation), Err(Release::Held), "a retired sample takes no new reader");
        assert_eq!(slot.unpin(), Release::Held);
        assert_eq!(slot.unpin(), Release::Freed);
        assert_eq!(slot.pin(generation), Err(Release::Held));
        slot.claim();
        assert_eq!(slot.publish(), generation + 1);
        assert_eq!(slot.pin(generation), Err(Release::Held), "an entry of an older generation pins nothing");
    }

    #[test]
    fn the_first_sight_is_told_once_a_generation() {
        let slot = SlotWord::new();
        for _ in 0..3 {
            slot.claim();
            let generation = slot.publish();
            assert_eq!(slot.pin(generation), Ok(()));
            assert_eq!((slot.deliver(), slot.deliver(), slot.deliveries()), (true, false, 2));
            assert_eq!((slot.retire(), slot.unpin()), (Release::Held, Release::Freed));
        }
    }

    #[test]
    fn entries_survive_packing() {
        let entry = Entry { slot: 7, generation: u32::MAX };
        assert_eq!(Entry::unpack(entry.pack()), entry);
    }
}
