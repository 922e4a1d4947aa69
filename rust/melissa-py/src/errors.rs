//! Errors of the core as the Python exceptions of `melissa.exceptions`.

use melissa_core::error::BufferError;
use melissa_core::snapshot::SnapshotError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// A class of `melissa.exceptions`, looked up once.
pub struct Class {
    name: &'static str,
    cell: PyOnceLock<Py<PyType>>,
}

impl Class {
    const fn new(name: &'static str) -> Self {
        Self { name, cell: PyOnceLock::new() }
    }

    /// Whether an error is of this class.
    pub fn is(&self, py: Python<'_>, error: &PyErr) -> bool {
        self.cell
            .import(py, "melissa.exceptions", self.name)
            .is_ok_and(|class| error.is_instance(py, class.as_any()))
    }

    pub fn error(&self, py: Python<'_>, text: impl Into<String>) -> PyErr {
        match self.cell.import(py, "melissa.exceptions", self.name) {
            Ok(class) => PyErr::from_type(class.clone(), text.into()),
            Err(error) => error,
        }
    }
}

pub static AUTHENTICATION_ERROR: Class = Class::new("AuthenticationError");
pub static BUFFER_CLOSED: Class = Class::new("BufferClosed");
pub static CHECKPOINT_ERROR: Class = Class::new("CheckpointError");
pub static CLIENT_ERROR: Class = Class::new("ClientError");
pub static CONFIGURATION: Class = Class::new("UnsupportedConfiguration");
pub static END_OF_DATA: Class = Class::new("EndOfData");
pub static FORKED_PROCESS_ERROR: Class = Class::new("ForkedProcessError");
pub static MEMORY_LIMIT_ERROR: Class = Class::new("MemoryLimitError");
pub static PROTOCOL_ERROR: Class = Class::new("ProtocolError");
pub static RECEPTION_ERROR: Class = Class::new("ReceptionError");
pub static REFUSED_ERROR: Class = Class::new("RefusedError");
pub static SCHEMA_ERROR: Class = Class::new("SchemaError");
pub static SERVER_LOST_ERROR: Class = Class::new("ServerLostError");
pub static STUDY_STOPPED: Class = Class::new("StudyStopped");
pub static TRAINING_BUFFER_ERROR: Class = Class::new("TrainingBufferError");
pub static WAIT_TIMEOUT: Class = Class::new("WaitTimeout");

pub fn buffer_error(py: Python<'_>, error: &BufferError) -> PyErr {
    let class = match error {
        BufferError::Configuration(_) | BufferError::Snapshot(SnapshotError::OtherConfiguration { .. }) => {
            &CONFIGURATION
        }
        BufferError::Unbound => &TRAINING_BUFFER_ERROR,
        BufferError::OtherSchema { .. }
        | BufferError::Schema(_)
        | BufferError::FieldBytes { .. }
        | BufferError::Count { .. } => &SCHEMA_ERROR,
        BufferError::Memory { .. } | BufferError::ValidationMemory { .. } | BufferError::Map { .. } => {
            &MEMORY_LIMIT_ERROR
        }
        BufferError::Snapshot(_) => &TRAINING_BUFFER_ERROR,
        BufferError::Closed => &BUFFER_CLOSED,
        BufferError::Failed(_) => &RECEPTION_ERROR,
        BufferError::EndOfData => &END_OF_DATA,
        BufferError::Timeout => &WAIT_TIMEOUT,
    };
    class.error(py, error.to_string())
}

pub fn is_timeout(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<pyo3::exceptions::PyTimeoutError>(py)
}
