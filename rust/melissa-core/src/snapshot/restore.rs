//! A training buffer from a snapshot.

use super::{SampleState, SnapshotError, SnapshotState};
use crate::bound::Population;
use crate::buffer::{Buffer, BufferConfig};
use crate::error::BufferError;
use crate::policy::drain::Drain;
use crate::sample::SlotWriter;
use crate::schema::Schema;
use crate::slot::Entry;
use crate::sync::{Arc, Ordering, lock};
use std::fmt;

/// A sample of a snapshot whose payload is being restored, straight into its slot.
///
/// Payloads are given field by field, in native byte order: the layout of slots may change, a snapshot stays valid, and
/// a file of one array per field can be read in place.
pub struct RestoredSample {
    slot: SlotWriter,
    /// What was given, fields first, then the parameters.
    given: Vec<bool>,
}

impl RestoredSample {
    fn new(slot: SlotWriter) -> Self {
        let schema = slot.bound.slab.schema();
        let given = vec![false; schema.fields().len() + usize::from(schema.nb_parameters() > 0)];
        Self { slot, given }
    }

    pub fn schema(&self) -> &Arc<Schema> {
        self.slot.bound.slab.schema()
    }

    /// The bytes of one field of the schema, to be written whole.
    pub fn field_mut(&mut self, field: usize) -> &mut [u8] {
        self.given[field] = true;
        self.slot.field_bytes_mut(field)
    }

    /// The bytes of the parameters, float64 each, to be written whole.
    pub fn parameters_mut(&mut self) -> &mut [u8] {
        let schema = Arc::clone(self.schema());
        if let Some(given) = self.given.get_mut(schema.fields().len()) {
            *given = true;
        }
        let start = schema.parameters_offset();
        &mut self.slot.bytes_mut()[start..start + 8 * schema.nb_parameters()]
    }

    /// Copies one field of the schema.
    ///
    /// # Errors
    /// `FieldBytes`: another number of bytes than the field has.
    pub fn set_field(&mut self, field: usize, bytes: &[u8]) -> Result<(), BufferError> {
        let place = self.field_mut(field);
        if place.len() == bytes.len() {
            place.copy_from_slice(bytes);
            return Ok(());
        }
        let (expected, got) = (place.len(), bytes.len());
        Err(BufferError::FieldBytes { field: self.schema().fields()[field].name.clone(), expected, got })
    }

    /// Copies the parameters.
    ///
    /// # Errors
    /// `Count`: another number of bytes than the parameters have.
    pub fn set_parameters(&mut self, bytes: &[u8]) -> Result<(), BufferError> {
        let place = self.parameters_mut();
        if place.len() == bytes.len() {
            place.copy_from_slice(bytes);
            return Ok(());
        }
        let (expected, got) = (place.len(), bytes.len());
        Err(BufferError::Count { what: "bytes of parameters", expected, got })
    }

    /// `ordinal`: the samples published before it.
    fn publish(mut self, index: usize, sample: &SampleState, ordinal: u64) -> Result<Entry, SnapshotError> {
        if let Some(missing) = self.given.iter().position(|given| !given) {
            let field = self.schema().fields().get(missing);
            let missing = field.map_or("its parameters".into(), |field| format!("field \"{}\"", field.name));
            return Err(SnapshotError::Payload { index, missing });
        }
        self.slot.set_identity(sample.key(), &[]);
        self.slot.set_ordinal(ordinal);
        let entry = self.slot.publish();
        self.slot.bound.slab.word(entry.slot).delivered_before(sample.deliveries);
        Ok(entry)
    }
}

impl fmt::Debug for RestoredSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoredSample").field("slot", &self.slot).finish()
    }
}

impl Buffer {
    /// The buffer that a snapshot was taken of: given the same publishes and draws from here on, it delivers the same
    /// samples in the same order as that one did.
    ///
    /// `payload` is called with each place in `state.samples`, in order, and gives the sample's fields and parameters.
    /// The configuration must be that of the snapshot but for the seed, assembly slots and slots for views.
    ///
    /// # Errors
    /// `Snapshot` when the state is of another configuration or schema, contradicts itself, or a payload lacks a
    /// part; the errors of `new`, `bind` and `payload`.
    pub fn restore<E: From<BufferError>>(
        config: BufferConfig,
        schema: Arc<Schema>,
        state: &SnapshotState,
        mut payload: impl FnMut(usize, &mut RestoredSample) -> Result<(), E>,
    ) -> Result<Self, E> {
        let buffer = Self::new(config)?;
        state.check(&buffer.config, &schema).map_err(BufferError::from)?;
        buffer.bind(schema)?;
        let bound = buffer.bound.get().ok_or(BufferError::Unbound)?;
        let mut entries = Vec::with_capacity(state.samples.len());
        // A snapshot does not say in which order samples came that have no order of arrival: they are taken for the last.
        let first_ordinal = state.published - state.samples.len() as u64;
        for (index, sample) in state.samples.iter().enumerate() {
            // A new buffer has a free slot for each place of its population.
            let mut restored = RestoredSample::new(buffer.take_slot().ok_or(BufferError::Timeout)?);
            payload(index, &mut restored)?;
            let ordinal = first_ordinal + index as u64;
            entries.push(restored.publish(index, sample, ordinal).map_err(BufferError::from)?);
        }
        let mut writer = lock(&bound.writer);
        for (position, entry) in entries.iter().enumerate() {
            match &bound.population {
                Population::Removing(removing) => {
                    removing.add(|| Some(*entry));
                }
                Population::Positions(positions) => {
                    bound.slab.set_position(entry.slot, position);
                    positions.append(*entry);
                }
            }
        }
        writer.evictable.restore(&state.evictable);
        writer.evictable.rng().set_state(state.evictions);
        drop(writer);
        *lock(&bound.drain) =
            state.drain.map(|drain| Drain::restored(entries, drain.next as usize, drain.passes_left));
        buffer.draws.set_state(state.draws);
        buffer.published.store(state.published, Ordering::Relaxed);
        buffer.drawn.store(state.drawn, Ordering::Relaxed);
        buffer.closed.store(state.closed, Ordering::Release);
        if state.watermark_lifted {
            buffer.limiter.lift();
        }
        Ok(buffer)
    }
}
