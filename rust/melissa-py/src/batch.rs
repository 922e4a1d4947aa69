//! `Batch` and `Prefetcher`.

use crate::arrays;
use crate::buffer::PyBuffer;
use crate::checkpoint::PyCheckpointFile;
use crate::errors;
use crate::wait::{Owner, wait};
use melissa_core::batch::{Batch, BatchLayout, BatchPool};
use melissa_core::buffer::{Buffer, SampleKey};
use melissa_core::checkpoint::Pending;
use melissa_core::error::BufferError;
use melissa_core::prefetch::{HeldPrefetcher, Prefetcher, ResumeError};
use numpy::PyArray1;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Seconds after which somebody else must have ended a draw of one batch.
const HOLD_TIMEOUT: f64 = 10.0;

/// A batch of samples as arrays.
#[pyclass(frozen, module = "melissa._melissa", name = "Batch")]
pub struct PyBatch {
    batch: Mutex<Batch>,
}

impl PyBatch {
    fn from_core(batch: Batch) -> Self {
        Self { batch: Mutex::new(batch) }
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn keys(&self) -> Vec<SampleKey> {
        self.lock().keys().to_vec()
    }

    pub fn nb_samples(&self) -> usize {
        self.lock().keys().len()
    }

    /// Adds the batch to those of a cut.
    pub fn wait_in(&self, pending: &mut Pending) {
        pending.push_batch(&self.lock());
    }

    pub fn fill(&self, py: Python<'_>, buffer: &Arc<Buffer>, timeout: Option<f64>) -> PyResult<usize> {
        self.lock().clear();
        let result = wait(py, timeout, |until| buffer.gather(&mut self.lock(), until));
        let rows = self.lock().keys().len();
        match result {
            // What was drawn is not given up for the sake of what did not come.
            Err(error) if rows == 0 || !errors::is_timeout(py, &error) => Err(error),
            _ => Ok(rows),
        }
    }

    fn column<'py>(&self, py: Python<'py>, number: impl Fn(&SampleKey) -> i64) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, self.lock().keys().iter().map(number))
    }
}

#[pymethods]
impl PyBatch {
    /// An empty batch for `Buffer.sample_into`.
    #[new]
    fn new(py: Python<'_>, buffer: &PyBuffer, batch_size: usize) -> PyResult<Self> {
        let schema =
            buffer.core(py)?.schema().ok_or_else(|| errors::buffer_error(py, &BufferError::Unbound))?;
        let pool = Arc::<BatchPool>::default();
        Batch::new(&pool, BatchLayout::new(schema, batch_size))
            .map(Self::from_core)
            .map_err(|error| errors::buffer_error(py, &error))
    }

    fn __len__(&self) -> usize {
        self.lock().keys().len()
    }

    /// Parameters, then the time step: (samples, parameters + 1).
    #[getter]
    fn inputs<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyAny> {
        let batch = slf.get().lock();
        let schema = batch.layout().schema();
        let shape = [batch.keys().len(), schema.nb_parameters() + 1];
        // SAFETY: the rows that are there are initialised; the array keeps this object, which keeps the memory.
        unsafe {
            arrays::over(schema.input_dtype(), batch.inputs_ptr(), &shape, true, slf.clone().into_any())
        }
    }

    /// The parameters: a view of the inputs without their last column.
    #[getter]
    fn parameters<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let all = pyo3::types::PySlice::full(py);
        let but_last = pyo3::types::PySlice::new(py, 0, -1, 1);
        Self::inputs(slf).get_item((all, but_last))
    }

    #[getter]
    fn simulation_ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        self.column(py, |key| i64::from(key.simulation))
    }

    #[getter]
    fn draws<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        self.column(py, |key| i64::from(key.draw))
    }

    #[getter]
    fn time_steps<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        self.column(py, |key| key.time_step.try_into().unwrap_or(i64::MAX))
    }

    /// Field name to array (samples, size), in the order of the study.
    #[getter]
    fn fields<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let batch = slf.get().lock();
        let fields = PyDict::new(slf.py());
        for (index, field) in batch.layout().schema().fields().iter().enumerate() {
            let shape = [batch.keys().len(), field.size];
            // SAFETY: as for the inputs; fields start at multiples of 64 bytes.
            let array = unsafe {
                arrays::over(field.dtype, batch.field_ptr(index), &shape, true, slf.clone().into_any())
            };
            fields.set_item(&field.name, array)?;
        }
        Ok(fields)
    }

    fn __repr__(&self) -> String {
        let batch = self.lock();
        format!("Batch({} of {} samples)", batch.keys().len(), batch.layout().rows())
    }
}

/// Gathers batches ahead in a thread of its own.
#[pyclass(frozen, module = "melissa._melissa", name = "Prefetcher")]
pub struct PyPrefetcher {
    prefetcher: Prefetcher,
    owner: Owner,
}

impl PyPrefetcher {
    /// Keeps the prefetcher from drawing.
    pub fn hold(&self, py: Python<'_>) -> PyResult<HeldPrefetcher<'_>> {
        self.owner.check(py, "prefetcher")?;
        wait(py, Some(HOLD_TIMEOUT), |until| self.prefetcher.hold(until))
    }
}

#[pymethods]
impl PyPrefetcher {
    #[new]
    #[pyo3(signature = (buffer, batch_size, *, depth=2, drop_last=false, restored=None))]
    fn new(
        py: Python<'_>,
        buffer: &PyBuffer,
        batch_size: usize,
        depth: usize,
        drop_last: bool,
        restored: Option<&PyCheckpointFile>,
    ) -> PyResult<Self> {
        let buffer = Arc::clone(buffer.core(py)?);
        let pending = restored.map(|file| file.0.pending());
        let prefetcher = py
            .detach(|| Prefetcher::resume(buffer, batch_size, depth, drop_last, pending))
            .map_err(|error| match error {
                ResumeError::Buffer(error) => errors::buffer_error(py, &error),
                ResumeError::Thread(_) => PyOSError::new_err(error.to_string()),
            })?;
        Ok(Self { prefetcher, owner: Owner::here() })
    }

    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<PyBatch> {
        self.owner.check(py, "prefetcher")?;
        wait(py, timeout, |until| self.prefetcher.next(until)).map(PyBatch::from_core)
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.owner.check(py, "prefetcher")?;
        py.detach(|| self.prefetcher.stop());
        Ok(())
    }

    #[getter]
    fn wait_seconds(&self) -> f64 {
        self.prefetcher.wait_seconds()
    }
}
