//! Batches as arrays: gathered from slots row by row, into memory that is used again only when nobody refers to it.

use crate::buffer::Buffer;
use crate::draw::BatchCursor;
use crate::error::BufferError;
use crate::memory::Region;
use crate::sample::{SampleKey, SlotGuard, parameters};
use crate::schema::{ALIGNMENT, Dtype, Schema};
use crate::sync::{Arc, Mutex, lock};
use std::time::Instant;

/// Where the arrays of a batch lie in its memory.
///
/// First the inputs, (rows, parameters + 1), then each field, (rows, size), all in C order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchLayout {
    schema: Arc<Schema>,
    rows: usize,
    offsets: Vec<usize>,
    bytes: usize,
}

impl BatchLayout {
    pub fn new(schema: Arc<Schema>, rows: usize) -> Arc<Self> {
        let mut end = rows * Self::input_row_bytes(&schema);
        let offsets = (0..schema.fields().len())
            .map(|field| {
                let start = end.next_multiple_of(ALIGNMENT);
                end = start + rows * schema.field_bytes(field);
                start
            })
            .collect();
        Arc::new(Self { schema, rows, offsets, bytes: end })
    }

    fn input_row_bytes(schema: &Schema) -> usize {
        (schema.nb_parameters() + 1) * schema.input_dtype().size()
    }

    pub const fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Rows that fit.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory of batches of one layout that nobody uses now.
#[derive(Debug, Default)]
pub struct BatchPool {
    idle: Mutex<Vec<Region>>,
}

/// Idle batches that are kept; a trainer, its prefetcher and one in flight use no more.
const IDLE_LIMIT: usize = 4;

impl BatchPool {
    fn take(&self, bytes: usize) -> Result<Region, BufferError> {
        let mut idle = lock(&self.idle);
        while let Some(region) = idle.pop() {
            if region.len() == bytes {
                return Ok(region);
            }
        }
        drop(idle);
        Region::new(bytes).map_err(|source| BufferError::Map { bytes, source })
    }
}

/// The arrays of one batch. Dropped, its memory goes back to the pool.
#[derive(Debug)]
pub struct Batch {
    layout: Arc<BatchLayout>,
    region: Option<Region>,
    keys: Vec<SampleKey>,
    cursor: BatchCursor,
    pool: Arc<BatchPool>,
}

impl Batch {
    /// An empty batch for up to `rows` samples.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn new(pool: &Arc<BatchPool>, layout: Arc<BatchLayout>) -> Result<Self, BufferError> {
        let region = pool.take(layout.bytes().max(1))?;
        Ok(Self {
            keys: Vec::with_capacity(layout.rows()),
            cursor: BatchCursor::default(),
            region: Some(region),
            pool: Arc::clone(pool),
            layout,
        })
    }

    pub fn layout(&self) -> &BatchLayout {
        &self.layout
    }

    /// The samples in the batch, in row order.
    pub fn keys(&self) -> &[SampleKey] {
        &self.keys
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.cursor.clear();
    }

    fn base(&self) -> *mut u8 {
        self.region.as_ref().map_or(std::ptr::null_mut(), Region::as_ptr)
    }

    /// Address of the inputs: row after row of the parameters and the time step, in the schema's input dtype.
    pub fn inputs_ptr(&self) -> *mut u8 {
        self.base()
    }

    /// Address of a field: row after row of its elements.
    pub fn field_ptr(&self, field: usize) -> *mut u8 {
        // SAFETY: the offsets of the layout lie within the region.
        unsafe { self.base().add(self.layout.offsets[field]) }
    }

    /// Copies a sample into the next row.
    fn push(&mut self, sample: &SlotGuard<'_>) {
        let row = self.keys.len();
        assert!(row < self.layout.rows);
        let layout = Arc::clone(&self.layout);
        let schema = &*layout.schema;
        let bytes = sample.bytes();
        for field in 0..schema.fields().len() {
            let (start, length) = (schema.field_offset(field), schema.field_bytes(field));
            let source = &bytes[start..start + length];
            // SAFETY: row < rows, so the row lies in the field's part of the region; `&mut self` keeps other writers
            // out, and the slab is another mapping.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    source.as_ptr(),
                    self.field_ptr(field).add(row * length),
                    length,
                );
            }
        }
        let key = sample.key();
        let inputs = parameters(schema, bytes).chain([key.time_step as f64]);
        let row_start = row * (schema.nb_parameters() + 1);
        for (column, value) in inputs.enumerate() {
            // SAFETY: the row of inputs lies in the region, whose start is aligned for both types.
            unsafe {
                match schema.input_dtype() {
                    Dtype::F64 => self.base().cast::<f64>().add(row_start + column).write(value),
                    _ => self.base().cast::<f32>().add(row_start + column).write(value as f32),
                }
            }
        }
        self.keys.push(key);
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            let mut idle = lock(&self.pool.idle);
            if idle.len() < IDLE_LIMIT {
                idle.push(region);
            }
        }
    }
}

impl Buffer {
    /// Draws samples into the batch until it is full, or is to end earlier (then with at least one sample).
    ///
    /// # Errors
    /// `EndOfData`, `Timeout`, `Failed`. Rows drawn before a `Timeout` stay, and a further call goes on.
    pub fn gather(&self, batch: &mut Batch, deadline: Option<Instant>) -> Result<(), BufferError> {
        while batch.cursor.drawn() < batch.layout.rows {
            let mut cursor = std::mem::take(&mut batch.cursor);
            let drawn = self.draw(&mut cursor, deadline);
            batch.cursor = cursor;
            match drawn {
                Ok(Some(guard)) => batch.push(&guard),
                Ok(None) => break,
                Err(BufferError::EndOfData) if !batch.keys.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
