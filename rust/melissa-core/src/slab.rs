//! The memory of a training buffer: slots of one stride, their words, and the lists that samplers hand back on.

use crate::buffer::SampleKey;
use crate::error::BufferError;
use crate::memory::{self, Region};
use crate::schema::Schema;
use crate::slot::{Entry, Release, SlotWord};
use crate::sync::{Arc, AtomicU32, Ordering};
use std::cell::UnsafeCell;

const END: u32 = u32::MAX;
const MIB: u64 = 1 << 20;

/// A list of slots that any thread pushes to and one thread at a time takes whole.
///
/// The links lie in the slots, so it cannot overflow; it is taken with one swap, so there is no ABA problem.
#[derive(Debug)]
pub(crate) struct SlotList {
    head: AtomicU32,
}

impl SlotList {
    const fn new() -> Self {
        Self { head: AtomicU32::new(END) }
    }

    fn push(&self, slot: u32, link: &AtomicU32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            link.store(head, Ordering::Relaxed);
            // SYNC(list): pairs with the acquire in `take_into`.
            match self.head.compare_exchange_weak(head, slot, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Appends all slots of the list to `out`, in the order in which they were pushed.
    fn take_into(&self, out: &mut Vec<u32>, link: impl Fn(u32) -> u32) {
        if self.head.load(Ordering::Relaxed) == END {
            return;
        }
        let start = out.len();
        // SYNC(list): pairs with the release in `push`.
        let mut slot = self.head.swap(END, Ordering::Acquire);
        while slot != END {
            out.push(slot);
            slot = link(slot);
        }
        out[start..].reverse();
    }
}

/// How the slots of a slab are meant to be used; the slab itself makes no difference between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotCounts {
    /// C: the largest population.
    pub capacity: usize,
    /// A: bodies that are being received, or complete and waiting for room.
    pub assembly: usize,
    /// V: slots that lent views may keep from being used again.
    pub lent: usize,
}

impl SlotCounts {
    pub const fn total(self) -> usize {
        self.capacity + self.assembly + self.lent
    }
}

pub(crate) struct Slab {
    schema: Arc<Schema>,
    region: Region,
    words: Box<[SlotWord]>,
    /// Identity of the sample in each slot: written by its `SlotWriter`, read under a pin.
    keys: Box<[UnsafeCell<SampleKey>]>,
    free: SlotList,
    seen: SlotList,
}

// SAFETY: the bytes and the key of a slot are written only through its one `SlotWriter`, before `publish`, and read
// only under a pin, which is given after `publish` and keeps the slot from being written again.
unsafe impl Sync for Slab {}
// SAFETY: as above; nothing in a slab belongs to a thread.
unsafe impl Send for Slab {}

impl std::fmt::Debug for Slab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slab")
            .field("slots", &self.words.len())
            .field("stride", &self.schema.stride())
            .finish()
    }
}

impl Slab {
    pub(crate) fn new(schema: Arc<Schema>, counts: SlotCounts) -> Result<Self, BufferError> {
        let slots = counts.total();
        let stride = schema.stride();
        let bytes = slots.saturating_mul(stride);
        let available = memory::available().unwrap_or(u64::MAX);
        if slots >= END as usize || bytes as u64 > available {
            return Err(BufferError::Memory {
                needed_mib: (bytes as u64).div_ceil(MIB),
                available_mib: available / MIB,
                slots,
                stride,
                capacity: counts.capacity,
                assembly: counts.assembly,
                lent: counts.lent,
            });
        }
        let map_error = |source| BufferError::Map { bytes, source };
        let region = Region::new(bytes).map_err(map_error)?;
        region.keep_from_children().map_err(map_error)?;
        let key = SampleKey { simulation: 0, draw: 0, time_step: 0 };
        Ok(Self {
            schema,
            region,
            words: (0..slots).map(|_| SlotWord::new()).collect(),
            keys: (0..slots).map(|_| UnsafeCell::new(key)).collect(),
            free: SlotList::new(),
            seen: SlotList::new(),
        })
    }

    pub(crate) const fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.region.len()
    }

    pub(crate) const fn huge_pages(&self) -> bool {
        self.region.huge_pages()
    }

    pub(crate) const fn slots(&self) -> usize {
        self.words.len()
    }

    pub(crate) fn word(&self, slot: u32) -> &SlotWord {
        &self.words[slot as usize]
    }

    pub(crate) fn slot_ptr(&self, slot: u32) -> *mut u8 {
        assert!((slot as usize) < self.words.len());
        // SAFETY: the slot number is below the number of slots, so that the offset lies in the region.
        unsafe { self.region.as_ptr().add(slot as usize * self.schema.stride()) }
    }

    pub(crate) fn key_ptr(&self, slot: u32) -> *mut SampleKey {
        self.keys[slot as usize].get()
    }

    /// Hands a slot that became free back to the writer.
    pub(crate) fn push_free(&self, slot: u32) {
        self.free.push(slot, &self.word(slot).next_free);
    }

    pub(crate) fn take_free(&self, out: &mut Vec<u32>) {
        self.free.take_into(out, |slot| self.word(slot).next_free.load(Ordering::Relaxed));
    }

    /// Tells the writer of the first sight of a sample. At most once a generation, so that a slot is never on the
    /// list twice: the writer retires no sample whose first sight it has not been told of.
    pub(crate) fn push_seen(&self, slot: u32) {
        self.seen.push(slot, &self.word(slot).next_seen);
    }

    pub(crate) fn take_seen(&self, out: &mut Vec<u32>) {
        self.seen.take_into(out, |slot| self.word(slot).next_seen.load(Ordering::Relaxed));
    }

    /// Handles what letting go of a slot did; true when it became free.
    pub(crate) fn released(&self, slot: u32, release: Release) -> bool {
        let freed = release == Release::Freed;
        if freed {
            self.push_free(slot);
        }
        freed
    }

    /// Pins the sample of an entry, if it is still there.
    pub(crate) fn pin(&self, entry: Entry) -> Result<(), bool> {
        self.word(entry.slot).pin(entry.generation).map_err(|release| self.released(entry.slot, release))
    }
}
