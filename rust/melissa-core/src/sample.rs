//! One sample, and the three ways to its bytes: the one who writes it, a sampler that copies it, a user who views it.

use crate::bound::Bound;
use crate::planted::{Bug, planted};
use crate::schema::Schema;
use crate::slot::Entry;
use crate::sync::{Arc, Ordering};
use std::fmt;
use std::mem::ManuallyDrop;
use zerocopy::IntoBytes;

/// Which sample it is: the key of the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SampleKey {
    pub simulation: u32,
    /// How often the simulation's parameters were drawn anew.
    pub draw: u32,
    pub time_step: u64,
}

/// A slot in which a body is received: the only way to write payload bytes. Dropped unpublished, it gives the slot
/// back.
pub struct SlotWriter {
    pub(crate) bound: Arc<Bound>,
    slot: u32,
    armed: bool,
}

impl SlotWriter {
    /// Takes over a slot that the caller has claimed.
    pub(crate) const fn new(bound: Arc<Bound>, slot: u32) -> Self {
        Self { bound, slot, armed: true }
    }

    /// All bytes of the slot.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the slot is in state Filling, which this writer alone has brought about, and the slice borrows it.
        unsafe { self.bound.slab.slot_bytes_mut(self.slot) }
    }

    /// The bytes of one field.
    pub fn field_bytes_mut(&mut self, field: usize) -> &mut [u8] {
        let schema = self.bound.slab.schema();
        let (start, length) = (schema.field_offset(field), schema.field_bytes(field));
        &mut self.bytes_mut()[start..start + length]
    }

    pub(crate) fn set_identity(&mut self, key: SampleKey, parameters: &[f64]) {
        let schema = self.bound.slab.schema();
        let (start, length) = (schema.parameters_offset(), 8 * schema.nb_parameters());
        let bytes = &mut self.bytes_mut()[start..start + length];
        for (place, parameter) in bytes.chunks_exact_mut(8).zip(parameters) {
            place.copy_from_slice(&parameter.to_ne_bytes());
        }
        // SAFETY: as for the bytes: the key of a slot in state Filling belongs to its one writer.
        unsafe { self.bound.slab.set_key(self.slot, key) };
    }

    /// How many samples were published before this one.
    pub(crate) fn set_ordinal(&mut self, ordinal: u64) {
        self.bound.slab.word(self.slot).set_ordinal(ordinal);
    }

    /// The sample as a private copy; the slot is given back.
    pub(crate) fn into_copy(mut self, key: SampleKey, parameters: &[f64]) -> Sample {
        self.set_identity(key, parameters);
        let schema = Arc::clone(self.bound.slab.schema());
        let mut words = vec![0u64; schema.stride() / 8].into_boxed_slice();
        words.as_mut_bytes().copy_from_slice(self.bytes_mut());
        Sample { key, schema, payload: Payload::Copy(words) }
    }

    /// `Filling -> Published`.
    pub(crate) fn publish(&mut self) -> Entry {
        self.armed = false;
        Entry { slot: self.slot, generation: self.bound.slab.word(self.slot).publish() }
    }
}

impl Drop for SlotWriter {
    fn drop(&mut self) {
        if self.armed {
            self.bound.slab.word(self.slot).unclaim();
            self.bound.slab.push_free(self.slot);
            self.bound.room.signal();
        }
    }
}

impl fmt::Debug for SlotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotWriter").field("slot", &self.slot).finish()
    }
}

/// A drawn sample under a pin, for the time of a copy.
pub(crate) struct SlotGuard<'a> {
    pub(crate) bound: &'a Arc<Bound>,
    pub(crate) slot: u32,
}

impl<'a> SlotGuard<'a> {
    /// Takes over a pin of the caller's.
    pub(crate) fn new(bound: &'a Arc<Bound>, slot: u32) -> Self {
        if planted(Bug::PinDroppedEarly) {
            bound.unpin(slot);
        }
        Self { bound, slot }
    }
}

impl SlotGuard<'_> {
    pub(crate) fn key(&self) -> SampleKey {
        // SAFETY: the pin was given after the sample was published, and keeps the slot from being written again.
        unsafe { self.bound.slab.key(self.slot) }
    }

    /// Asks for the first bytes of the slot, to be copied soon.
    pub(crate) fn prefetch(&self) {
        self.bound.slab.prefetch_bytes(self.slot);
    }

    /// All bytes of the slot.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as in `key`; the slice borrows the guard.
        unsafe { self.bound.slab.slot_bytes(self.slot) }
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        if !planted(Bug::PinDroppedEarly) {
            self.bound.unpin(self.slot);
        }
    }
}

/// The float64 parameters of a sample in the bytes of its slot.
pub(crate) fn parameters<'a>(schema: &Schema, bytes: &'a [u8]) -> impl Iterator<Item = f64> + 'a {
    let start = schema.parameters_offset();
    numbers(&bytes[start..start + 8 * schema.nb_parameters()])
}

/// Float64 numbers in native byte order.
pub(crate) fn numbers(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes.chunks_exact(8).map(|chunk| {
        let mut number = [0; 8];
        number.copy_from_slice(chunk);
        f64::from_ne_bytes(number)
    })
}

enum Payload {
    View {
        bound: Arc<Bound>,
        slot: u32,
    },
    /// Of a snapshot; not counted among the views.
    Pinned {
        bound: Arc<Bound>,
        slot: u32,
    },
    Copy(Box<[u64]>),
}

/// A sample lent to the user: a view that holds a pin, or, when as many views are out as may be, a private copy.
pub struct Sample {
    key: SampleKey,
    schema: Arc<Schema>,
    payload: Payload,
}

impl Sample {
    /// A view that holds a pin of its own; `None` when as many are out as may be.
    pub(crate) fn view(guard: &SlotGuard<'_>) -> Option<Self> {
        let (bound, slot) = (Arc::clone(guard.bound), guard.slot);
        if bound.lent.fetch_add(1, Ordering::Relaxed) >= bound.lent_limit {
            bound.lent.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        bound.slab.word(slot).pin_again();
        let (key, schema) = (guard.key(), Arc::clone(bound.slab.schema()));
        Some(Self { key, schema, payload: Payload::View { bound, slot } })
    }

    /// Takes over a pin of a snapshot's.
    pub(crate) fn pinned(bound: &Arc<Bound>, slot: u32) -> Self {
        let bound = Arc::clone(bound);
        // The guard is the way to the key; the pin stays.
        let key = ManuallyDrop::new(SlotGuard { bound: &bound, slot }).key();
        let schema = Arc::clone(bound.slab.schema());
        Self { key, schema, payload: Payload::Pinned { bound, slot } }
    }

    /// A private copy.
    pub(crate) fn copy(guard: &SlotGuard<'_>) -> Self {
        let schema = Arc::clone(guard.bound.slab.schema());
        let mut words = vec![0u64; schema.stride() / 8].into_boxed_slice();
        // SAFETY: both sides are `stride` bytes long, and the source is pinned.
        unsafe {
            std::ptr::copy_nonoverlapping(
                guard.bytes().as_ptr(),
                words.as_mut_ptr().cast::<u8>(),
                schema.stride(),
            );
        }
        Self { key: guard.key(), schema, payload: Payload::Copy(words) }
    }

    /// A copy of what was in a sample before a restart: each field's bytes, and the parameters as float64.
    pub(crate) fn restored<'a>(
        schema: Arc<Schema>,
        key: SampleKey,
        field: impl Fn(usize) -> &'a [u8],
        parameters: &[u8],
    ) -> Self {
        let mut words = vec![0u64; schema.stride() / 8].into_boxed_slice();
        // SAFETY: the box's own bytes, all initialised, borrowed until the end of this function.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), schema.stride()) };
        for index in 0..schema.fields().len() {
            let start = schema.field_offset(index);
            bytes[start..start + schema.field_bytes(index)].copy_from_slice(field(index));
        }
        let start = schema.parameters_offset();
        bytes[start..start + parameters.len()].copy_from_slice(parameters);
        Self { key, schema, payload: Payload::Copy(words) }
    }

    pub const fn key(&self) -> SampleKey {
        self.key
    }

    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub const fn is_copy(&self) -> bool {
        matches!(self.payload, Payload::Copy(_))
    }

    pub fn parameters(&self) -> Vec<f64> {
        parameters(&self.schema, self.bytes()).collect()
    }

    /// The bytes of the parameters, float64 in native byte order.
    pub fn parameters_bytes(&self) -> &[u8] {
        let start = self.schema.parameters_offset();
        &self.bytes()[start..start + 8 * self.schema.nb_parameters()]
    }

    /// The bytes of one field, in native byte order, aligned for its dtype.
    pub fn field_bytes(&self, field: usize) -> &[u8] {
        let start = self.schema.field_offset(field);
        &self.bytes()[start..start + self.schema.field_bytes(field)]
    }

    fn bytes(&self) -> &[u8] {
        match &self.payload {
            // SAFETY: this sample holds a pin, given after publication, until it is dropped.
            Payload::View { bound, slot } | Payload::Pinned { bound, slot } => unsafe {
                bound.slab.slot_bytes(*slot)
            },
            // SAFETY: the box holds stride / 8 words, all initialised.
            Payload::Copy(words) => unsafe {
                std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), self.schema.stride())
            },
        }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        match &self.payload {
            Payload::View { bound, slot } => {
                bound.lent.fetch_sub(1, Ordering::Relaxed);
                bound.unpin(*slot);
            }
            Payload::Pinned { bound, slot } => bound.unpin(*slot),
            Payload::Copy(_) => {}
        }
    }
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sample").field("key", &self.key).field("copy", &self.is_copy()).finish()
    }
}
