//! The memory of a training buffer: slots of one stride, their words, and the lists that samplers hand back on.

use crate::buffer::SampleKey;
use crate::error::BufferError;
use crate::memory::{self, Apart, MIB, Region};
use crate::schema::{ALIGNMENT, Schema};
use crate::slot::{Entry, Release, SlotWord};
use crate::sync::{Access, Arc, AtomicU32, Ordering, UnsafeCell};

const END: u32 = u32::MAX;
/// Bytes of a slot that are asked for ahead; the processor finds the rest of a longer one by itself.
const PREFETCHED: usize = 256;
const PAGE: usize = 4096;
/// Pages of a slot whose addresses are to be translated ahead: also huge pages may be small ones to the machine below.
const PREFETCHED_PAGES: usize = 16;

/// A list of slots that any thread pushes to and one thread at a time takes whole.
///
/// The links lie in the slots, so it cannot overflow; it is taken with one swap, so there is no ABA problem.
#[derive(Debug)]
pub(crate) struct SlotList {
    head: AtomicU32,
}

impl SlotList {
    fn new() -> Self {
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

/// What is kept of a slot beside its bytes, together on a cache line of its own: a draw needs it all.
#[derive(Debug)]
#[repr(align(64))]
struct Note {
    word: SlotWord,
    /// Identity of the sample: written by the slot's `SlotWriter`, read under a pin.
    key: UnsafeCell<SampleKey>,
}

pub(crate) struct Slab {
    schema: Arc<Schema>,
    region: Region,
    notes: Box<[Note]>,
    accesses: Box<[Access]>,
    free: Apart<SlotList>,
    seen: Apart<SlotList>,
}

// SAFETY: the bytes and the key of a slot are written only through its one `SlotWriter`, before `publish`, and read
// only under a pin, which is given after `publish` and keeps the slot from being written again.
unsafe impl Sync for Slab {}
// SAFETY: as above; nothing in a slab belongs to a thread.
unsafe impl Send for Slab {}

impl std::fmt::Debug for Slab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slab")
            .field("slots", &self.notes.len())
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
            notes: memory::boxed_slice(slots, || Note { word: SlotWord::new(), key: UnsafeCell::new(key) }),
            accesses: (0..slots).map(|_| Access::new()).collect(),
            free: Apart(SlotList::new()),
            seen: Apart(SlotList::new()),
        })
    }

    pub(crate) const fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub(crate) const fn size(&self) -> usize {
        self.region.len()
    }

    pub(crate) const fn huge_pages(&self) -> bool {
        self.region.huge_pages()
    }

    pub(crate) const fn slots(&self) -> usize {
        self.notes.len()
    }

    pub(crate) fn word(&self, slot: u32) -> &SlotWord {
        &self.notes[slot as usize].word
    }

    fn slot_ptr(&self, slot: u32) -> *mut u8 {
        assert!((slot as usize) < self.notes.len());
        // SAFETY: the slot number is below the number of slots, so that the offset lies in the region.
        unsafe { self.region.as_ptr().add(slot as usize * self.schema.stride()) }
    }

    /// Asks for the word and the key of a slot that is to be pinned soon.
    pub(crate) fn prefetch_word(&self, slot: u32) {
        memory::prefetch(&raw const self.notes[slot as usize]);
    }

    /// Asks for the first bytes of a slot that is to be copied soon.
    pub(crate) fn prefetch_bytes(&self, slot: u32) {
        let start = self.slot_ptr(slot);
        let stride = self.schema.stride();
        let lines = (0..stride.min(PREFETCHED)).step_by(ALIGNMENT);
        let pages = (PAGE..stride.min(PREFETCHED_PAGES * PAGE)).step_by(PAGE);
        for offset in lines.chain(pages) {
            memory::prefetch(start.wrapping_add(offset));
        }
    }

    /// All bytes of a slot.
    ///
    /// # Safety
    /// The caller holds a pin that was given after publication, for as long as it keeps the slice.
    pub(crate) unsafe fn slot_bytes(&self, slot: u32) -> &[u8] {
        self.accesses[slot as usize].read();
        // SAFETY: `stride` bytes of the slot lie in the region, initialised (zeroed by the kernel); by the caller's pin
        // nobody writes them.
        unsafe { std::slice::from_raw_parts(self.slot_ptr(slot), self.schema.stride()) }
    }

    /// All bytes of a slot, to be written.
    ///
    /// # Safety
    /// The caller is the one writer of the slot, which is in state Filling, and keeps one such slice at a time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slot_bytes_mut(&self, slot: u32) -> &mut [u8] {
        self.accesses[slot as usize].write();
        // SAFETY: as in `slot_bytes`; by the caller's word nobody else reads or writes them.
        unsafe { std::slice::from_raw_parts_mut(self.slot_ptr(slot), self.schema.stride()) }
    }

    /// Which sample is in a slot.
    ///
    /// # Safety
    /// As for `slot_bytes`.
    pub(crate) unsafe fn key(&self, slot: u32) -> SampleKey {
        // SAFETY: the key is written by the slot's one writer before publication only.
        self.notes[slot as usize].key.with(|key| unsafe { *key })
    }

    /// Says which sample is in a slot.
    ///
    /// # Safety
    /// As for `slot_bytes_mut`.
    pub(crate) unsafe fn set_key(&self, slot: u32, key: SampleKey) {
        // SAFETY: by the caller's word nobody else reads or writes it.
        self.notes[slot as usize].key.with_mut(|place| unsafe { *place = key });
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

    /// Position of a slot that is in the population of a reservoir; the writer's own note, which lies where the first sight
    /// is read from.
    pub(crate) fn position(&self, slot: u32) -> u32 {
        self.word(slot).position.load(Ordering::Relaxed)
    }

    pub(crate) fn set_position(&self, slot: u32, position: usize) {
        self.word(slot).position.store(position as u32, Ordering::Relaxed);
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
