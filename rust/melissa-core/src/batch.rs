//! Batches as arrays: gathered from slots row by row, into memory that is used again only when nobody refers to it.

use crate::buffer::Buffer;
use crate::draw::BatchCursor;
use crate::error::BufferError;
use crate::memory::{self, Region, copy};
use crate::sample::{SampleKey, SlotGuard, numbers, parameters};
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

/// What a batch takes memory for.
#[derive(Debug)]
struct Memory {
    region: Region,
    keys: Vec<SampleKey>,
    cursor: BatchCursor,
}

/// Memory of batches of one layout that nobody uses now.
#[derive(Debug, Default)]
pub struct BatchPool {
    idle: Mutex<Vec<Memory>>,
}

/// Samples that are pinned together before they are copied: one after another, the pins' atomic operations would keep the
/// processor from fetching a sample while it copies the one before.
const CLAIMS: usize = 16;
/// Large samples are pinned one by one: there it gains nothing, and a slot is sooner free.
const BYTES_AT_ONCE: usize = 64 << 10;

/// Samples whose first bytes are asked for together, so many ahead of the copies.
const HINTS: usize = 4;

/// Idle batches that are kept; a trainer, its prefetcher and one in flight use no more.
const IDLE_LIMIT: usize = 4;

impl BatchPool {
    fn take(&self, layout: &BatchLayout) -> Result<Memory, BufferError> {
        let bytes = layout.bytes().max(1);
        let mut idle = lock(&self.idle);
        while let Some(memory) = idle.pop() {
            if memory.region.len() == bytes {
                return Ok(memory);
            }
        }
        drop(idle);
        let region = Region::new(bytes).map_err(|source| BufferError::Map { bytes, source })?;
        Ok(Memory { region, keys: Vec::with_capacity(layout.rows()), cursor: BatchCursor::default() })
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
        let Memory { region, keys, cursor } = pool.take(&layout)?;
        Ok(Self { keys, cursor, region: Some(region), pool: Arc::clone(pool), layout })
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

    /// The rows of a field that are there.
    pub(crate) fn field_rows(&self, field: usize) -> &[u8] {
        let bytes = self.keys.len() * self.layout.schema.field_bytes(field);
        // SAFETY: the rows of the samples that are there lie in the field's part of the region and are initialised; they
        // are written under `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.field_ptr(field), bytes) }
    }

    /// The parameters of a row that is there.
    pub(crate) fn parameters_of_row(&self, row: usize) -> impl Iterator<Item = f64> + '_ {
        assert!(row < self.keys.len());
        let schema = &*self.layout.schema;
        let start = row * (schema.nb_parameters() + 1);
        (start..start + schema.nb_parameters()).map(move |place| {
            // SAFETY: the row of inputs lies in the region, whose start is aligned for both types, and is initialised.
            unsafe {
                match schema.input_dtype() {
                    Dtype::F64 => self.base().cast::<f64>().add(place).read(),
                    _ => f64::from(self.base().cast::<f32>().add(place).read()),
                }
            }
        })
    }

    /// Where the samples stood that must not come again in this batch, which is being drawn.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.cursor.positions()
    }

    /// Draws into this batch go on, none of them at these positions.
    pub(crate) fn go_on_from(&mut self, positions: impl Iterator<Item = usize>) {
        self.cursor.restore(self.keys.len(), positions);
    }

    /// Copies a sample that was in a batch before a restart into the next row. Each field has the bytes of the schema,
    /// and the parameters are float64.
    pub(crate) fn push_saved<'a>(
        &mut self,
        key: SampleKey,
        field: impl Fn(usize) -> &'a [u8],
        parameters: &[u8],
    ) {
        let row = self.keys.len();
        assert!(row < self.layout.rows);
        let schema = Arc::clone(&self.layout.schema);
        for index in 0..schema.fields().len() {
            let (bytes, length) = (field(index), schema.field_bytes(index));
            assert_eq!(bytes.len(), length);
            // SAFETY: the row is one of the batch's and `length` bytes long, as the source; `&mut self` keeps others out.
            unsafe { copy(bytes.as_ptr(), self.field_ptr(index).add(row * length), length) };
        }
        self.put_inputs(row, numbers(parameters), key);
        self.keys.push(key);
    }

    /// Copies samples into the next rows.
    fn push(&mut self, samples: &[Option<SlotGuard<'_>>]) {
        let first = self.keys.len();
        assert!(first + samples.len() <= self.layout.rows);
        let layout = &*self.layout;
        let schema = &*layout.schema;
        for field in 0..schema.fields().len() {
            let (start, length) = (schema.field_offset(field), schema.field_bytes(field));
            for (row, sample) in (first..).zip(samples.iter().flatten()) {
                let source = &sample.bytes()[start..start + length];
                // SAFETY: the row is one of the batch's, so that it lies in the field's part of the region and is `length` bytes
                // long, as the source; `&mut self` keeps other writers out, and the slab is another mapping.
                unsafe { copy(source.as_ptr(), self.field_ptr(field).add(row * length), length) };
            }
        }
        for (row, sample) in (first..).zip(samples.iter().flatten()) {
            let key = sample.key();
            self.put_inputs(row, parameters(schema, sample.bytes()), key);
            self.keys.push(key);
        }
    }

    /// Writes the inputs of the next row, on behalf of who holds `&mut self`.
    fn put_inputs(&self, row: usize, parameters: impl Iterator<Item = f64>, key: SampleKey) {
        let schema = &*self.layout.schema;
        let columns = schema.nb_parameters() + 1;
        assert!(row < self.layout.rows);
        for (column, value) in parameters.chain([key.time_step as f64]).take(columns).enumerate() {
            // SAFETY: the row of inputs lies in the region, whose start is aligned for both types.
            unsafe {
                match schema.input_dtype() {
                    Dtype::F64 => self.base().cast::<f64>().add(row * columns + column).write(value),
                    _ => self.base().cast::<f32>().add(row * columns + column).write(value as f32),
                }
            }
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            self.clear();
            let keys = std::mem::take(&mut self.keys);
            let cursor = std::mem::take(&mut self.cursor);
            let mut idle = lock(&self.pool.idle);
            if idle.len() < IDLE_LIMIT {
                idle.push(Memory { region, keys, cursor });
            }
        }
    }
}

/// Bytes that this process has copied into batches by vector registers; for the test that counts every copy.
#[doc(hidden)]
pub fn streamed_bytes() -> u64 {
    memory::streamed_bytes()
}

impl Buffer {
    /// Draws samples into the batch until it is full, or is to end earlier (then with at least one sample).
    ///
    /// # Errors
    /// `EndOfData`, `Timeout`, `Failed`. Rows drawn before a `Timeout` stay, and a further call goes on.
    pub fn gather(&self, batch: &mut Batch, deadline: Option<Instant>) -> Result<(), BufferError> {
        let at_once = (BYTES_AT_ONCE / batch.layout.schema.stride()).clamp(1, CLAIMS);
        let distance = at_once.clamp(2, HINTS);
        while batch.cursor.drawn() < batch.layout.rows {
            let left = batch.layout.rows - batch.cursor.drawn();
            // On the stack: nothing is allocated for a sample.
            let mut guards = [const { None }; CLAIMS];
            match self.claim(&mut batch.cursor, &mut guards[..at_once.min(left)], deadline) {
                Ok(0) => break,
                Ok(count) => {
                    // Beside the copies: pins are atomic operations, which would wait for what is under way.
                    self.look_ahead(count);
                    let mut ahead = distance;
                    for rows in guards[..count].chunks(HINTS) {
                        for _ in rows {
                            match guards.get(ahead) {
                                Some(Some(next)) => next.prefetch(),
                                _ => self.prefetch_bytes(ahead.saturating_sub(count)),
                            }
                            ahead += 1;
                        }
                        batch.push(rows);
                    }
                }
                Err(BufferError::EndOfData) if !batch.keys.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
