//! Samples that tell by each of their bytes which one they are.

use melissa_core::buffer::{Sample, SampleKey, SlotWriter};
use melissa_core::schema::{Dtype, Field, Schema};
use std::sync::Arc;

const ELEMENTS: usize = 9;

pub fn schema() -> Arc<Schema> {
    let field = |name: &str, dtype, size| Field { name: name.into(), dtype, size };
    Arc::new(
        Schema::new(vec![field("u", Dtype::F64, ELEMENTS), field("v", Dtype::U8, 3)], 2).expect("a schema"),
    )
}

pub fn key(number: u64) -> SampleKey {
    SampleKey { simulation: (number / 7) as u32, draw: (number % 3) as u32, time_step: number }
}

pub fn parameters(number: u64) -> [f64; 2] {
    [number as f64, -1.0]
}

/// Writes the fields of sample `number`.
pub fn fill(slot: &mut SlotWriter, number: u64) {
    for chunk in slot.field_bytes_mut(0).chunks_exact_mut(8) {
        chunk.copy_from_slice(&(number as f64).to_ne_bytes());
    }
    slot.field_bytes_mut(1).fill(number as u8);
}

/// The sample is whole and is the one that its key says.
pub fn number_of(sample: &Sample) -> u64 {
    let number = sample.key().time_step;
    assert_eq!(sample.key(), key(number));
    assert_eq!(sample.parameters(), parameters(number));
    assert!(sample.field_bytes(0).chunks_exact(8).all(|chunk| chunk == (number as f64).to_ne_bytes()));
    assert_eq!(sample.field_bytes(1), [number as u8; 3]);
    number
}

/// The payload of a sample, as a file would hold it.
#[derive(Clone, Debug)]
pub struct Saved {
    pub fields: Vec<Vec<u8>>,
    pub parameters: Vec<u8>,
}

impl Saved {
    pub fn of(sample: &Sample) -> Self {
        let fields = (0..sample.schema().fields().len()).map(|field| sample.field_bytes(field).to_vec());
        Self { fields: fields.collect(), parameters: sample.parameters_bytes().to_vec() }
    }
}
