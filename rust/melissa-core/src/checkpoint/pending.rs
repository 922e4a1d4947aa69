//! Batches that were drawn and not yet trained: copies at the cut, delivered first after a restart.

use crate::batch::{Batch, BatchLayout, BatchPool};
use crate::error::BufferError;
use crate::sample::{Sample, SampleKey};
use crate::schema::Schema;
use crate::sync::Arc;
use serde::{Deserialize, Serialize};

/// How the samples of a [`Pending`] are batches.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingState {
    /// Samples of each batch.
    pub batches: Vec<u64>,
    /// The last one of `batches` is not complete yet: draws go on with it, none of them at these positions.
    pub is_begun: bool,
    pub positions: Vec<u64>,
}

/// The samples of batches that wait to be trained, in the order of delivery.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Pending {
    pub state: PendingState,
    pub(super) keys: Vec<SampleKey>,
    /// Row after row of each field, in native byte order.
    pub(super) fields: Vec<Vec<u8>>,
    /// Row after row, float64.
    pub(super) parameters: Vec<u8>,
}

impl Pending {
    /// Samples in all batches.
    pub fn nb_samples(&self) -> usize {
        self.keys.len()
    }

    fn start(&mut self, nb_samples: usize, schema: &Schema) {
        self.state.batches.push(nb_samples as u64);
        self.fields.resize(schema.fields().len(), Vec::new());
    }

    /// Makes room for so many further samples at once: growing would copy what is there.
    pub fn reserve(&mut self, nb_samples: usize, schema: &Schema) {
        self.keys.reserve_exact(nb_samples);
        self.fields.resize(schema.fields().len(), Vec::new());
        for (field, rows) in self.fields.iter_mut().enumerate() {
            rows.reserve_exact(nb_samples * schema.field_bytes(field));
        }
        self.parameters.reserve_exact(nb_samples * 8 * schema.nb_parameters());
    }

    /// Adds a batch that was gathered into arrays.
    pub fn push_batch(&mut self, batch: &Batch) {
        let schema = batch.layout().schema();
        self.start(batch.keys().len(), schema);
        self.keys.extend_from_slice(batch.keys());
        for (field, rows) in self.fields.iter_mut().enumerate() {
            rows.extend_from_slice(batch.field_rows(field));
        }
        for row in 0..batch.keys().len() {
            let numbers = batch.parameters_of_row(row).flat_map(f64::to_ne_bytes);
            self.parameters.extend(numbers);
        }
    }

    /// Adds the batch that is being gathered.
    pub(crate) fn push_begun(&mut self, batch: &Batch) {
        self.push_batch(batch);
        self.state.is_begun = true;
        self.state.positions = batch.positions().map(|position| position as u64).collect();
    }

    /// Adds a batch of single samples.
    pub fn push_samples<'a>(&mut self, samples: impl ExactSizeIterator<Item = &'a Sample>) {
        let nb_samples = samples.len();
        for (index, sample) in samples.enumerate() {
            if index == 0 {
                self.start(nb_samples, sample.schema());
            }
            self.keys.push(sample.key());
            for (field, rows) in self.fields.iter_mut().enumerate() {
                rows.extend_from_slice(sample.field_bytes(field));
            }
            self.parameters.extend_from_slice(sample.parameters_bytes());
        }
    }

    /// Appends what is delivered after this.
    pub fn append(&mut self, mut later: Self) {
        if self.keys.is_empty() {
            *self = later;
            return;
        }
        self.state.batches.append(&mut later.state.batches);
        self.state.is_begun |= later.state.is_begun;
        self.state.positions.append(&mut later.state.positions);
        self.keys.append(&mut later.keys);
        for (rows, more) in self.fields.iter_mut().zip(&mut later.fields) {
            rows.append(more);
        }
        self.parameters.append(&mut later.parameters);
    }

    fn row(rows: &[u8], row: usize, length: usize) -> &[u8] {
        &rows[row * length..(row + 1) * length]
    }

    fn parameters_row(&self, schema: &Schema, row: usize) -> &[u8] {
        Self::row(&self.parameters, row, 8 * schema.nb_parameters())
    }

    /// The samples one by one, as copies of their own.
    pub fn samples(&self, schema: &Arc<Schema>) -> Vec<Sample> {
        (0..self.keys.len())
            .map(|row| {
                let field = |field: usize| Self::row(&self.fields[field], row, schema.field_bytes(field));
                Sample::restored(Arc::clone(schema), self.keys[row], field, self.parameters_row(schema, row))
            })
            .collect()
    }

    /// The batches as arrays, and the one that is begun.
    ///
    /// # Errors
    /// When one has more samples than the layout has rows; when the kernel has no memory for them.
    pub(crate) fn batches(
        &self,
        pool: &Arc<BatchPool>,
        layout: &Arc<BatchLayout>,
    ) -> Result<(Vec<Batch>, Option<Batch>), BufferError> {
        let schema = layout.schema();
        let mut batches = Vec::with_capacity(self.state.batches.len());
        let mut row = 0;
        for &nb_samples in &self.state.batches {
            let got = nb_samples as usize;
            if got > layout.rows() {
                return Err(BufferError::Count {
                    what: "rows in a batch, or less",
                    expected: layout.rows(),
                    got,
                });
            }
            let mut batch = Batch::new(pool, Arc::clone(layout))?;
            for row in row..row + got {
                let field = |field: usize| Self::row(&self.fields[field], row, schema.field_bytes(field));
                batch.push_saved(self.keys[row], field, self.parameters_row(schema, row));
            }
            row += got;
            batches.push(batch);
        }
        let mut begun = if self.state.is_begun { batches.pop() } else { None };
        if let Some(batch) = &mut begun {
            batch.go_on_from(self.state.positions.iter().map(|&position| position as usize));
        }
        Ok((batches, begun))
    }
}
