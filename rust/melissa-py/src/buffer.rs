//! `Buffer` and `Sample`.

use crate::arrays;
use crate::batch::{PyBatch, PyPrefetcher};
use crate::checkpoint::PyCut;
use crate::errors;
use crate::receiver::{PyReceiver, session_error};
use crate::wait::{Owner, wait};
use melissa_core::buffer::{Buffer, BufferConfig, Kind, LentBatch, Sample, SampleKey};
use melissa_core::checkpoint::{Cut, Pending};
use melissa_core::error::BufferError;
use melissa_core::ledger::LedgerState;
use melissa_core::schema::{Dtype, Field, Schema};
use melissa_core::session::{CutError, SessionCut, SessionState};
use numpy::PyUntypedArray;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::sync::Arc;

/// A schema from (name, size, dtype) triples.
pub fn schema(
    py: Python<'_>,
    fields: Vec<(String, usize, String)>,
    nb_parameters: usize,
) -> PyResult<Arc<Schema>> {
    let fields = fields
        .into_iter()
        .map(|(name, size, dtype)| match Dtype::from_name(&dtype) {
            Some(dtype) => Ok(Field { name, dtype, size }),
            None => Err(errors::SCHEMA_ERROR.error(
                py,
                format!(
                    "field \"{name}\": dtype \"{dtype}\" is not one of {}",
                    Dtype::ALL.map(Dtype::name).join(", ")
                ),
            )),
        })
        .collect::<PyResult<Vec<_>>>()?;
    Schema::new(fields, nb_parameters)
        .map(Arc::new)
        .map_err(|error| errors::SCHEMA_ERROR.error(py, error.to_string()))
}

/// Walks over a list or any other iterable; a conversion to `Vec` would first ask the abstract base classes what it is,
/// which takes as long as all the rest of a put.
fn for_each<'py>(
    items: &Bound<'py, PyAny>,
    mut each: impl FnMut(Bound<'py, PyAny>) -> PyResult<()>,
) -> PyResult<()> {
    match items.cast::<PyList>() {
        Ok(list) => list.iter().try_for_each(each),
        Err(_) => items.try_iter()?.try_for_each(|item| each(item?)),
    }
}

fn triples(schema: &Schema) -> Vec<(String, usize, &'static str)> {
    schema.fields().iter().map(|field| (field.name.clone(), field.size, field.dtype.name())).collect()
}

/// A batch that was drawn and not yet trained, as Python has it.
enum Ahead {
    Batch(Py<PyBatch>),
    Samples(Vec<Py<PySample>>),
}

impl Ahead {
    fn of(batch: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(batch) = batch.cast::<PyBatch>() {
            return Ok(Self::Batch(batch.clone().unbind()));
        }
        let mut samples = Vec::new();
        for_each(batch, |sample| {
            samples.push(sample.cast_into::<PySample>().map_err(PyErr::from)?.unbind());
            Ok(())
        })?;
        Ok(Self::Samples(samples))
    }

    fn nb_samples(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.get().nb_samples(),
            Self::Samples(samples) => samples.len(),
        }
    }

    /// Copies the samples; other threads of Python go on meanwhile.
    fn wait_in(&self, pending: &mut Pending) {
        match self {
            Self::Batch(batch) => batch.get().wait_in(pending),
            Self::Samples(samples) => pending.push_samples(samples.iter().map(|sample| &sample.get().0)),
        }
    }
}

/// A training buffer in a slab of its own.
#[pyclass(frozen, module = "melissa._melissa", name = "Buffer")]
pub struct PyBuffer {
    buffer: Arc<Buffer>,
    owner: Owner,
}

impl PyBuffer {
    pub fn from_core(buffer: Buffer) -> Self {
        Self { buffer: Arc::new(buffer), owner: Owner::here() }
    }

    pub fn core(&self, py: Python<'_>) -> PyResult<&Arc<Buffer>> {
        self.owner.check(py, "training buffer")?;
        Ok(&self.buffer)
    }
}

#[pymethods]
impl PyBuffer {
    #[new]
    #[pyo3(signature = (kind, capacity, *, watermark=0, pseudo_epochs=1, batch_size=1, seed=0, assembly_slots=1, lent_slots=None))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python constructor")]
    fn new(
        py: Python<'_>,
        kind: &str,
        capacity: usize,
        watermark: usize,
        pseudo_epochs: u32,
        batch_size: usize,
        seed: u64,
        assembly_slots: usize,
        lent_slots: Option<usize>,
    ) -> PyResult<Self> {
        let Some(kind) = Kind::from_name(kind) else {
            return Err(PyValueError::new_err(format!(
                "\"{kind}\" is no kind of training buffer; the kinds are {}",
                Kind::ALL.map(Kind::name).join(", ")
            )));
        };
        let config = BufferConfig {
            kind,
            capacity,
            watermark,
            pseudo_epochs,
            batch_size,
            seed,
            assembly_slots,
            lent_slots,
        };
        let buffer = Buffer::new(config).map_err(|error| errors::buffer_error(py, &error))?;
        Ok(Self::from_core(buffer))
    }

    #[getter]
    fn kind(&self) -> &'static str {
        self.buffer.config().kind.name()
    }

    #[getter]
    fn capacity(&self) -> usize {
        self.buffer.config().capacity
    }

    #[getter]
    fn watermark(&self) -> usize {
        self.buffer.config().watermark
    }

    #[getter]
    fn pseudo_epochs(&self) -> u32 {
        self.buffer.config().pseudo_epochs
    }

    #[getter]
    fn batch_size(&self) -> usize {
        self.buffer.config().batch_size
    }

    #[getter]
    fn bound(&self) -> bool {
        self.buffer.schema().is_some()
    }

    #[getter]
    fn population(&self) -> usize {
        self.buffer.population()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.buffer.is_closed()
    }

    #[getter]
    fn paused(&self) -> bool {
        self.buffer.is_paused()
    }

    /// Deliveries still to come once the drain has begun, else None.
    #[getter]
    fn remaining(&self) -> Option<usize> {
        self.buffer.remaining()
    }

    #[getter]
    fn nb_parameters(&self) -> usize {
        self.buffer.schema().map_or(0, |schema| schema.nb_parameters())
    }

    #[getter]
    fn fields(&self) -> Vec<(String, usize, &'static str)> {
        self.buffer.schema().map_or_else(Vec::new, |schema| triples(&schema))
    }

    fn __len__(&self) -> usize {
        self.buffer.population()
    }

    fn __repr__(&self) -> String {
        let config = self.buffer.config();
        format!(
            "Buffer({:?}, capacity={}, watermark={}, population={})",
            config.kind.name(),
            config.capacity,
            config.watermark,
            self.buffer.population()
        )
    }

    fn bind(
        &self,
        py: Python<'_>,
        fields: Vec<(String, usize, String)>,
        nb_parameters: usize,
    ) -> PyResult<()> {
        let schema = schema(py, fields, nb_parameters)?;
        let buffer = self.core(py)?;
        py.detach(|| buffer.bind(schema)).map_err(|error| errors::buffer_error(py, &error))
    }

    #[pyo3(signature = (simulation_id, time_step, fields, parameters=None, *, draw=0, timeout=None))]
    #[pyo3(
        text_signature = "($self, simulation_id, time_step, fields, parameters=(), *, draw=0, timeout=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python method")]
    fn put(
        &self,
        py: Python<'_>,
        simulation_id: u32,
        time_step: u64,
        fields: &Bound<'_, PyAny>,
        parameters: Option<&Bound<'_, PyAny>>,
        draw: u32,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let buffer = self.core(py)?;
        let Some(schema) = buffer.schema() else {
            return Err(errors::buffer_error(py, &BufferError::Unbound));
        };
        let mut arrays: Vec<Bound<'_, PyUntypedArray>> = Vec::with_capacity(schema.fields().len());
        let mut came = 0;
        for_each(fields, |value| {
            if let Some(field) = schema.fields().get(came) {
                arrays.push(arrays::contiguous(&value, field.dtype, &field.name)?);
            }
            came += 1;
            Ok(())
        })?;
        if came > schema.fields().len() {
            let error = BufferError::Count { what: "fields", expected: schema.fields().len(), got: came };
            return Err(errors::buffer_error(py, &error));
        }
        let mut numbers: Vec<f64> = Vec::with_capacity(schema.nb_parameters());
        if let Some(parameters) = parameters {
            for_each(parameters, |value| {
                numbers.push(value.extract()?);
                Ok(())
            })?;
        }
        // SAFETY: the arrays are contiguous, and referenced until this call returns.
        let bytes: Vec<&[u8]> = arrays.iter().map(|array| unsafe { arrays::bytes(array) }).collect();
        let key = SampleKey { simulation: simulation_id, draw, time_step };
        wait(py, timeout, |until| buffer.put(key, &bytes, &numbers, until))
    }

    #[pyo3(signature = (timeout=None))]
    fn get(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<PySample> {
        let buffer = self.core(py)?;
        wait(py, timeout, |until| buffer.get(until)).map(PySample)
    }

    #[pyo3(signature = (nb_samples, timeout=None))]
    fn get_batch(&self, py: Python<'_>, nb_samples: usize, timeout: Option<f64>) -> PyResult<Vec<PySample>> {
        let buffer = self.core(py)?;
        let mut batch = LentBatch::default();
        match wait(py, timeout, |until| buffer.get_batch(&mut batch, nb_samples, until)) {
            // What was drawn is not given up for the sake of what did not come.
            Err(error) if batch.samples.is_empty() || !errors::is_timeout(py, &error) => Err(error),
            _ => Ok(batch.samples.into_iter().map(PySample).collect()),
        }
    }

    #[pyo3(signature = (batch, timeout=None))]
    fn sample_into(&self, py: Python<'_>, batch: &PyBatch, timeout: Option<f64>) -> PyResult<usize> {
        let buffer = self.core(py)?;
        batch.fill(py, buffer, timeout)
    }

    fn wait_ready(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let buffer = self.core(py)?;
        let ready = wait(py, Some(timeout), |until| match buffer.wait_ready(until) {
            Ok(false) => Err(BufferError::Timeout),
            other => other,
        });
        match ready {
            Err(error) if errors::is_timeout(py, &error) => Ok(false),
            other => other,
        }
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let buffer = self.core(py)?;
        py.detach(|| buffer.close());
        Ok(())
    }

    /// Ends every wait on the buffer with a ReceptionError of that text.
    fn fail(&self, py: Python<'_>, message: String) -> PyResult<()> {
        let buffer = self.core(py)?;
        py.detach(|| buffer.fail(message));
        Ok(())
    }

    fn lift_watermark(&self, py: Python<'_>) -> PyResult<()> {
        let buffer = self.core(py)?;
        py.detach(|| buffer.lift_watermark());
        Ok(())
    }

    fn pause(&self, py: Python<'_>) -> PyResult<()> {
        let buffer = self.core(py)?;
        py.detach(|| buffer.pause());
        Ok(())
    }

    fn reopen(&self, py: Python<'_>) -> PyResult<()> {
        let buffer = self.core(py)?;
        py.detach(|| buffer.reopen()).map_err(|error| errors::CHECKPOINT_ERROR.error(py, error.to_string()))
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        let buffer = self.core(py)?;
        py.detach(|| buffer.resume());
        Ok(())
    }

    fn peek(&self, py: Python<'_>, index: usize) -> PyResult<Option<PySample>> {
        let buffer = self.core(py)?;
        Ok(py.detach(|| buffer.peek(index)).map(PySample))
    }

    fn samples(&self, py: Python<'_>) -> PyResult<Vec<PySample>> {
        let buffer = self.core(py)?;
        Ok(py.detach(|| (0..).map_while(|index| buffer.peek(index)).map(PySample).collect()))
    }

    /// Takes a cut between two batches: the population, what `ahead` and then `prefetcher` hold, and what `receiver`
    /// knows.
    #[pyo3(signature = (receiver=None, prefetcher=None, ahead=None))]
    fn cut(
        &self,
        py: Python<'_>,
        receiver: Option<&PyReceiver>,
        prefetcher: Option<&PyPrefetcher>,
        ahead: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyCut> {
        let buffer = self.core(py)?;
        let mut drawn = Vec::new();
        if let Some(ahead) = ahead {
            for_each(ahead, |batch| {
                drawn.push(Ahead::of(&batch)?);
                Ok(())
            })?;
        }
        let held = prefetcher.map(|prefetcher| prefetcher.hold(py)).transpose()?;
        let pending = py.detach(|| {
            let mut pending = Pending::default();
            if let Some(schema) = buffer.schema() {
                pending.reserve(drawn.iter().map(Ahead::nb_samples).sum(), &schema);
            }
            for batch in &drawn {
                batch.wait_in(&mut pending);
            }
            if let Some(held) = &held {
                pending.append(held.pending());
            }
            pending
        });
        let cut = match receiver {
            Some(receiver) => {
                let session = receiver.session(py)?;
                py.detach(|| session.cut()).map_err(|error| match &error {
                    CutError::Stopping => errors::CHECKPOINT_ERROR.error(py, error.to_string()),
                    CutError::Buffer(error) => errors::buffer_error(py, error),
                    CutError::Session(error) => session_error(py, error),
                })?
            }
            None => SessionCut {
                session: SessionState::default(),
                ledger: LedgerState::default(),
                buffer: py.detach(|| buffer.snapshot()).map_err(|error| errors::buffer_error(py, &error))?,
            },
        };
        drop(held);
        let SessionCut { session, ledger, buffer } = cut;
        Ok(PyCut::from_core(Cut { buffer, pending, ledger, session }))
    }

    fn seen_counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let buffer = self.core(py)?;
        let mut times = py.detach(|| buffer.deliveries());
        times.sort_unstable();
        let counts = PyDict::new(py);
        for group in times.chunk_by(|a, b| a == b) {
            counts.set_item(group[0], group.len())?;
        }
        Ok(counts)
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let buffer = self.core(py)?;
        let statistics = py.detach(|| buffer.statistics());
        let out = PyDict::new(py);
        out.set_item("samples", statistics.samples)?;
        out.set_item("unseen", statistics.unseen)?;
        out.set_item("deliveries_mean", statistics.deliveries_mean)?;
        out.set_item("deliveries_max", statistics.deliveries_max)?;
        out.set_item("age_mean", statistics.age_mean)?;
        out.set_item("age_max", statistics.age_max)?;
        out.set_item("input_mean", statistics.input_mean)?;
        out.set_item("input_std", statistics.input_std)?;
        Ok(out)
    }

    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metrics = self.buffer.metrics();
        let counts = self.buffer.slot_counts();
        let out = PyDict::new(py);
        out.set_item("population", metrics.population)?;
        out.set_item("published", metrics.published)?;
        out.set_item("drawn", metrics.drawn)?;
        out.set_item("data_wait_s", metrics.data_wait_seconds)?;
        out.set_item("view_copies", metrics.view_copies)?;
        out.set_item("slab_bytes", metrics.slab_bytes)?;
        out.set_item("slots", counts.total())?;
        out.set_item("assembly_slots", counts.assembly)?;
        out.set_item("lent_slots", counts.lent)?;
        out.set_item("stride", metrics.stride)?;
        out.set_item("huge_pages", metrics.huge_pages)?;
        Ok(out)
    }
}

/// One sample of a training buffer, held by a pin (or a private copy when as many views are out as may be).
#[pyclass(frozen, module = "melissa._melissa", name = "Sample")]
pub struct PySample(pub Sample);

#[pymethods]
impl PySample {
    #[getter]
    fn simulation_id(&self) -> u32 {
        self.0.key().simulation
    }

    #[getter]
    fn draw(&self) -> u32 {
        self.0.key().draw
    }

    #[getter]
    fn time_step(&self) -> u64 {
        self.0.key().time_step
    }

    #[getter]
    fn is_copy(&self) -> bool {
        self.0.is_copy()
    }

    #[getter]
    fn parameters(&self) -> Vec<f64> {
        self.0.parameters()
    }

    /// The fields, read-only and one-dimensional, in the order of the study.
    #[getter]
    fn fields<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let sample = &slf.get().0;
        let fields = sample.schema().fields();
        let arrays = fields.iter().enumerate().map(|(index, field)| {
            let pointer = sample.field_bytes(index).as_ptr().cast_mut();
            // SAFETY: fields start at multiples of 64 bytes in slots, and at multiples of 8 in copies; the array
            // keeps the sample, which keeps the pin; and the array is read-only.
            unsafe { arrays::over(field.dtype, pointer, &[field.size], false, slf.clone().into_any()) }
        });
        PyTuple::new(slf.py(), arrays.collect::<Vec<_>>())
    }

    fn __repr__(&self) -> String {
        let key = self.0.key();
        format!("Sample(simulation_id={}, draw={}, time_step={})", key.simulation, key.draw, key.time_step)
    }
}
