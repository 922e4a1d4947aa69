//! `Cut`, `CheckpointWriting` and `CheckpointFile`.

use crate::buffer::{PyBuffer, PySample};
use crate::errors;
use crate::receiver::sums;
use crate::wait::{Owner, deadline};
use melissa_core::checkpoint::{CheckpointError, CheckpointFile, Cut, Writing};
use melissa_core::ledger::DrawSteps;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a wait comes back to see whether a signal came.
const SIGNAL_POLL: Duration = Duration::from_millis(100);

fn checkpoint_error(py: Python<'_>, error: &CheckpointError) -> PyErr {
    match error {
        CheckpointError::Buffer { source, .. } => {
            let inner = errors::buffer_error(py, source);
            // Another configuration, or too little memory: no older checkpoint would do better.
            if errors::CONFIGURATION.is(py, &inner) || errors::MEMORY_LIMIT_ERROR.is(py, &inner) {
                return inner;
            }
            errors::CHECKPOINT_ERROR.error(py, error.to_string())
        }
        _ => errors::CHECKPOINT_ERROR.error(py, error.to_string()),
    }
}

/// Everything that a server rank's data plane goes on from, at one moment.
#[pyclass(frozen, module = "melissa._melissa", name = "Cut")]
pub struct PyCut {
    cut: Mutex<Option<Cut>>,
    population: usize,
    pending: usize,
}

impl PyCut {
    pub fn from_core(cut: Cut) -> Self {
        let (population, pending) = (cut.buffer.state.samples.len(), cut.pending.nb_samples());
        Self { cut: Mutex::new(Some(cut)), population, pending }
    }
}

#[pymethods]
impl PyCut {
    #[getter]
    fn population(&self) -> usize {
        self.population
    }

    #[getter]
    fn pending(&self) -> usize {
        self.pending
    }

    fn write(&self, py: Python<'_>, path: PathBuf) -> PyResult<PyWriting> {
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).take();
        let cut =
            cut.ok_or_else(|| PyValueError::new_err("this cut was written before; take another one"))?;
        let writing = py.detach(|| cut.write(&path)).map_err(|error| checkpoint_error(py, &error))?;
        Ok(PyWriting { writing, owner: Owner::here() })
    }
}

/// A checkpoint that is being written by a thread of its own.
#[pyclass(frozen, module = "melissa._melissa", name = "CheckpointWriting")]
pub struct PyWriting {
    writing: Writing,
    owner: Owner,
}

#[pymethods]
impl PyWriting {
    #[getter]
    fn busy(&self) -> bool {
        self.writing.is_busy()
    }

    /// What was written; None when the time is over before.
    #[pyo3(signature = (timeout=None))]
    fn wait<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.owner.check(py, "checkpoint")?;
        let end = deadline(timeout)?;
        loop {
            let slice = Instant::now() + SIGNAL_POLL;
            let until = end.map_or(slice, |end| end.min(slice));
            match py.detach(|| self.writing.wait(Some(until))) {
                Some(Ok(written)) => {
                    let out = PyDict::new(py);
                    out.set_item("bytes", written.bytes)?;
                    out.set_item("crc32c", written.crc32c)?;
                    out.set_item("seconds", written.seconds)?;
                    out.set_item("copied_aside", written.copied_aside)?;
                    return Ok(Some(out));
                }
                Some(Err(error)) => return Err(checkpoint_error(py, &error)),
                None => py.check_signals()?,
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
        }
    }
}

/// A checkpoint file that was found in order.
#[pyclass(frozen, module = "melissa._melissa", name = "CheckpointFile")]
pub struct PyCheckpointFile(pub CheckpointFile);

#[pymethods]
impl PyCheckpointFile {
    #[new]
    #[pyo3(signature = (path, known=None))]
    fn new(py: Python<'_>, path: PathBuf, known: Option<(u64, u32)>) -> PyResult<Self> {
        py.detach(|| CheckpointFile::open(&path, known))
            .map(Self)
            .map_err(|error| checkpoint_error(py, &error))
    }

    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    #[getter]
    fn population(&self) -> usize {
        self.0.buffer_state().samples.len()
    }

    /// Samples of each batch that was drawn and not trained.
    #[getter]
    fn pending(&self) -> Vec<u64> {
        self.0.pending().state.batches.clone()
    }

    #[getter]
    fn fields(&self) -> Vec<(String, u64, String)> {
        let fields = self.0.buffer_state().fields.iter();
        fields.map(|field| (field.name.clone(), field.size, field.dtype.clone())).collect()
    }

    #[getter]
    fn buffer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = self.0.buffer_state();
        let out = PyDict::new(py);
        out.set_item("kind", &state.kind)?;
        out.set_item("capacity", state.capacity)?;
        out.set_item("watermark", state.watermark)?;
        out.set_item("pseudo_epochs", state.pseudo_epochs)?;
        out.set_item("batch_size", state.batch_size)?;
        out.set_item("nb_parameters", state.nb_parameters)?;
        out.set_item("closed", state.closed)?;
        out.set_item("published", state.published)?;
        out.set_item("drawn", state.drawn)?;
        Ok(out)
    }

    #[getter]
    fn ledger<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        sums(py, &self.0.ledger_sums())
    }

    /// (simulation, attempt, draw, finished, complete time steps of the draw) of each that was registered.
    #[getter]
    fn simulations(&self) -> Vec<(u32, u32, u32, bool, u64)> {
        let draws = &self.0.ledger().draws;
        let count = |steps: &DrawSteps| steps.complete.iter().map(|word| u64::from(word.count_ones())).sum();
        let simulations = self.0.session().simulations.iter();
        simulations
            .map(|known| {
                let key = (known.simulation, known.draw);
                let place = draws.binary_search_by_key(&key, |steps| (steps.simulation, steps.draw));
                let complete = place.map_or(0, |place| count(&draws[place]));
                (known.simulation, known.attempt, known.draw, known.finished, complete)
            })
            .collect()
    }

    /// A training buffer with the configuration of `like`, which is unbound, in the state of the checkpoint.
    fn restore_buffer(&self, py: Python<'_>, like: &PyBuffer) -> PyResult<PyBuffer> {
        let config = like.core(py)?.config().clone();
        py.detach(|| self.0.restore_buffer(config))
            .map(PyBuffer::from_core)
            .map_err(|error| checkpoint_error(py, &error))
    }

    /// The samples that were drawn and not trained, as copies of their own.
    fn pending_samples(&self, py: Python<'_>) -> Vec<PySample> {
        py.detach(|| self.0.pending().samples(self.0.schema())).into_iter().map(PySample).collect()
    }

    #[staticmethod]
    fn measure(py: Python<'_>, path: PathBuf) -> PyResult<(u64, u32)> {
        py.detach(|| CheckpointFile::measure(&path)).map_err(|error| checkpoint_error(py, &error))
    }
}
