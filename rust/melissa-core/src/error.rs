//! Errors of the training buffer.

use crate::schema::{Schema, SchemaError};
use crate::snapshot::SnapshotError;
use thiserror::Error;

/// What can go wrong with a training buffer.
#[derive(Debug, Error)]
pub enum BufferError {
    #[error("{0}")]
    Configuration(String),
    #[error("the training buffer has no sample yet: its slab is allocated when the fields' sizes are known")]
    Unbound,
    #[error("the training buffer holds samples of {bound}; it cannot take samples of {other}")]
    OtherSchema { bound: String, other: String },
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(
        "the training buffer needs {needed_mib} MiB ({slots} slots of {stride} bytes: {capacity} for the population, \
         {assembly} for reception, {lent} for views) and {available_mib} MiB of memory are available; \
         lower dl_config.buffer_size or give the server more memory"
    )]
    Memory {
        needed_mib: u64,
        available_mib: u64,
        slots: usize,
        stride: usize,
        capacity: usize,
        assembly: usize,
        lent: usize,
    },
    #[error(
        "{samples} samples for validation of {stride} bytes need {needed_mib} MiB beside {buffer_mib} MiB for the training \
         buffer, and {available_mib} MiB of memory are available; lower validation_sweep_size or dl_config.buffer_size, or \
         give the server more memory"
    )]
    ValidationMemory { needed_mib: u64, available_mib: u64, samples: u64, stride: usize, buffer_mib: u64 },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the kernel refused {bytes} bytes for the training buffer: {source}")]
    Map { bytes: usize, source: std::io::Error },
    #[error("reception is over: the training buffer takes no more samples")]
    Closed,
    #[error("{0}")]
    Failed(String),
    #[error("reception is over and every sample of the training buffer was delivered")]
    EndOfData,
    #[error("nothing came within the time given")]
    Timeout,
    #[error("field \"{field}\" has {expected} bytes in every sample of this study; {got} came")]
    FieldBytes { field: String, expected: usize, got: usize },
    #[error("a sample of this study has {expected} {what}; {got} came")]
    Count { what: &'static str, expected: usize, got: usize },
}

/// The schema in words, for errors and the log.
pub fn describe(schema: &Schema) -> String {
    let fields: Vec<String> = schema
        .fields()
        .iter()
        .map(|field| format!("{} ({} x {})", field.name, field.size, field.dtype))
        .collect();
    format!("{} and {} parameters", fields.join(", "), schema.nb_parameters())
}
