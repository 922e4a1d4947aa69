//! `Receiver` and `SimulationState`.

use crate::batch::PyBatch;
use crate::buffer::{PyBuffer, PySample};
use crate::checkpoint::PyCheckpointFile;
use crate::errors;
use crate::wait::Owner;
use melissa_core::buffer::SampleKey;
use melissa_core::ledger::{Reason, Sums};
use melissa_core::session::{
    DataType, RestoredSession, RestoredSimulation, Session, SessionConfig, SessionError, SimulationState,
    Status,
};
use melissa_core::wire::auth::StudyKey;
use melissa_core::wire::distribution::Distribution;
use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a wait comes back to see whether a signal came.
const SIGNAL_POLL: Duration = Duration::from_millis(100);

pub fn session_error(py: Python<'_>, error: &SessionError) -> PyErr {
    let text = error.to_string();
    match error {
        SessionError::Configuration(_) => errors::CONFIGURATION.error(py, text),
        SessionError::Listen { .. } | SessionError::Thread(_) => PyOSError::new_err(text),
        SessionError::Simulation(_) => PyValueError::new_err(text),
        SessionError::Failed(_) | SessionError::Closed => errors::RECEPTION_ERROR.error(py, text),
    }
}

/// What the receiving side knows of one simulation at the moment of asking.
#[pyclass(frozen, module = "melissa._melissa", name = "SimulationState")]
pub struct PySimulationState(SimulationState);

#[pymethods]
impl PySimulationState {
    #[getter]
    fn simulation_id(&self) -> u32 {
        self.0.simulation_id
    }

    #[getter]
    fn attempt(&self) -> u32 {
        self.0.attempt
    }

    #[getter]
    fn draw(&self) -> u32 {
        self.0.draw
    }

    #[getter]
    fn status(&self) -> &'static str {
        self.0.status.name()
    }

    #[getter]
    fn steps_complete(&self) -> u64 {
        self.0.steps_complete
    }

    #[getter]
    fn host(&self) -> &str {
        &self.0.host
    }

    #[getter]
    fn error(&self) -> &str {
        &self.0.error
    }

    fn __repr__(&self) -> String {
        let state = &self.0;
        format!(
            "SimulationState(simulation_id={}, attempt={}, draw={}, status='{}', steps_complete={}, error={:?})",
            state.simulation_id, state.attempt, state.draw, state.status, state.steps_complete, state.error
        )
    }
}

/// Receives the time steps of a study into a training buffer, in a thread of its own.
#[pyclass(frozen, module = "melissa._melissa", name = "Receiver")]
pub struct PyReceiver {
    session: Session,
    owner: Owner,
}

impl PyReceiver {
    pub fn session(&self, py: Python<'_>) -> PyResult<&Session> {
        self.owner.check(py, "receiver")?;
        Ok(&self.session)
    }
}

pub fn sums<'py>(py: Python<'py>, sums: &Sums) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("declared", sums.declared)?;
    out.set_item("complete", sums.complete)?;
    out.set_item("trained", sums.trained)?;
    out.set_item("dropped_client_failed", sums.dropped_client_failed)?;
    out.set_item("dropped_stopped_early", sums.dropped_stopped_early)?;
    out.set_item("dropped_untrained", sums.dropped_untrained)?;
    out.set_item("duplicates_refused", sums.duplicates_refused)?;
    Ok(out)
}

fn reason(name: &str) -> PyResult<Reason> {
    Reason::from_name(name).ok_or_else(|| {
        PyValueError::new_err(format!(
            "\"{name}\" is no reason to drop time steps; the reasons are {}",
            Reason::ALL.map(Reason::name).join(", ")
        ))
    })
}

fn restored_simulation(known: (u32, u32, u32, String)) -> PyResult<RestoredSimulation> {
    let (simulation, attempt, draw, name) = known;
    let status = Status::ALL.into_iter().find(|status| status.name() == name).ok_or_else(|| {
        PyValueError::new_err(format!("simulation {simulation}: \"{name}\" is no status of a simulation"))
    })?;
    Ok(RestoredSimulation { simulation, attempt, draw, status })
}

#[pymethods]
impl PyReceiver {
    #[new]
    #[pyo3(signature = (
        buffer, *, key, study_epoch, field_names, nb_parameters, nb_time_steps, planned, data_type="float32",
        host="127.0.0.1", advertise=None, rank=0, nb_ranks=1, distribution="round_robin", validation=0,
        simulation_timeout=Some(400.0), receive_buffer_size=262_144, restored=None, simulations=Vec::new()
    ))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python constructor")]
    fn new(
        py: Python<'_>,
        buffer: &PyBuffer,
        key: &[u8],
        study_epoch: u64,
        field_names: Vec<String>,
        nb_parameters: usize,
        nb_time_steps: Option<u64>,
        planned: u32,
        data_type: &str,
        host: &str,
        advertise: Option<String>,
        rank: u32,
        nb_ranks: u32,
        distribution: &str,
        validation: u32,
        simulation_timeout: Option<f64>,
        receive_buffer_size: usize,
        restored: Option<&PyCheckpointFile>,
        simulations: Vec<(u32, u32, u32, String)>,
    ) -> PyResult<Self> {
        let key = StudyKey::from_bytes(key).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let data_type = DataType::from_name(data_type).ok_or_else(|| {
            PyValueError::new_err(format!(
                "data_type \"{data_type}\" is not one of {}",
                DataType::ALL.map(DataType::name).join(", ")
            ))
        })?;
        let distribution = Distribution::from_name(distribution).ok_or_else(|| {
            PyValueError::new_err(format!(
                "distribution \"{distribution}\" is neither {} nor {}",
                Distribution::RoundRobin,
                Distribution::Simulation
            ))
        })?;
        let simulation_timeout = simulation_timeout
            .map(|seconds| {
                Duration::try_from_secs_f64(seconds).map_err(|_| {
                    PyValueError::new_err(format!(
                        "simulation_timeout: a number of seconds was expected, {seconds} came"
                    ))
                })
            })
            .transpose()?;
        let config = SessionConfig {
            nb_time_steps,
            data_type,
            host: host.to_owned(),
            advertise,
            rank,
            nb_ranks,
            distribution,
            validation,
            simulation_timeout,
            receive_buffer_size,
            ..SessionConfig::new(key, study_epoch, field_names, nb_parameters, planned)
        };
        let buffer = Arc::clone(buffer.core(py)?);
        let simulations = simulations.into_iter().map(restored_simulation).collect::<PyResult<_>>()?;
        let restored = restored.map(|file| RestoredSession {
            session: file.0.session().clone(),
            ledger: file.0.ledger().clone(),
            simulations,
        });
        let session = py
            .detach(|| Session::resume(config, buffer, restored.as_ref()))
            .map_err(|error| session_error(py, &error))?;
        Ok(Self { session, owner: Owner::here() })
    }

    #[getter]
    fn address(&self) -> String {
        self.session.address().to_string()
    }

    #[getter]
    fn reception_over(&self) -> bool {
        self.session.reception_over()
    }

    fn set_servers(&self, py: Python<'_>, addresses: Vec<String>) -> PyResult<()> {
        let session = self.session(py)?;
        py.detach(|| session.set_servers(addresses)).map_err(|error| session_error(py, &error))
    }

    fn register(
        &self,
        py: Python<'_>,
        simulation_id: u32,
        attempt: u32,
        draw: u32,
        parameters: Vec<f64>,
    ) -> PyResult<()> {
        let session = self.session(py)?;
        py.detach(|| session.register(simulation_id, attempt, draw, parameters))
            .map_err(|error| session_error(py, &error))
    }

    fn confirm(&self, py: Python<'_>, simulation_id: u32) -> PyResult<()> {
        let session = self.session(py)?;
        py.detach(|| session.confirm(simulation_id)).map_err(|error| session_error(py, &error))
    }

    fn finish(&self, py: Python<'_>, simulation_id: u32, reason: &str) -> PyResult<()> {
        let (session, reason) = (self.session(py)?, self::reason(reason)?);
        py.detach(|| session.finish(simulation_id, reason)).map_err(|error| session_error(py, &error))
    }

    fn abandon_attempt(&self, py: Python<'_>, simulation_id: u32) -> PyResult<()> {
        let session = self.session(py)?;
        py.detach(|| session.abandon_attempt(simulation_id)).map_err(|error| session_error(py, &error))
    }

    fn changes(&self, py: Python<'_>, timeout: f64) -> PyResult<Vec<PySimulationState>> {
        let session = self.session(py)?;
        let end = crate::wait::deadline(Some(timeout))?.unwrap_or_else(Instant::now);
        loop {
            let slice = end.saturating_duration_since(Instant::now()).min(SIGNAL_POLL);
            let states = py.detach(|| session.changes(slice)).map_err(|error| session_error(py, &error))?;
            if !states.is_empty() || Instant::now() >= end {
                return Ok(states.into_iter().map(PySimulationState).collect());
            }
            py.check_signals()?;
        }
    }

    fn take_validation(&self, py: Python<'_>) -> PyResult<Vec<PySample>> {
        let session = self.session(py)?;
        Ok(session.take_validation().into_iter().map(PySample).collect())
    }

    fn mark_trained(&self, py: Python<'_>, what: &Bound<'_, PyAny>) -> PyResult<()> {
        let session = self.session(py)?;
        let keys: Vec<SampleKey> = if let Ok(batch) = what.cast::<PyBatch>() {
            batch.get().keys()
        } else {
            what.try_iter()?
                .map(|item| {
                    let item = item?;
                    let sample = item.cast::<PySample>().map_err(|_| {
                        PyTypeError::new_err(format!(
                            "mark_trained takes a Batch or Samples; {} came",
                            item.get_type()
                        ))
                    })?;
                    Ok(sample.get().0.key())
                })
                .collect::<PyResult<_>>()?
        };
        py.detach(|| session.mark_trained(keys));
        Ok(())
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let session = self.session(py)?;
        let counters = py.detach(|| session.counters());
        let out = PyDict::new(py);
        out.set_item("samples_received", counters.samples_received)?;
        out.set_item("validation_received", counters.validation_received)?;
        out.set_item("bytes_received", counters.bytes_received)?;
        out.set_item("bytes_discarded", counters.bytes_discarded)?;
        out.set_item("connections", counters.connections)?;
        out.set_item("handshakes_pending", counters.handshakes_pending)?;
        out.set_item("connections_accepted", counters.connections_accepted)?;
        out.set_item("connections_refused", counters.connections_refused)?;
        out.set_item("duplicates_refused", counters.duplicates_refused)?;
        out.set_item("room_wait_s", counters.room_wait_seconds)?;
        out.set_item("samples_waiting", counters.samples_waiting)?;
        out.set_item(
            "expected_samples",
            counters.expected_samples.map_or(-1, |n| n.try_into().unwrap_or(-1)),
        )?;
        out.set_item("simulations_finished", counters.simulations_finished)?;
        out.set_item("simulations_dropped", counters.simulations_dropped)?;
        Ok(out)
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.session(py)?;
        py.detach(|| session.stop()).map_err(|error| session_error(py, &error))
    }

    #[pyo3(signature = (final_reason=None))]
    fn ledger<'py>(&self, py: Python<'py>, final_reason: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
        let session = self.session(py)?;
        let reason = final_reason.map(reason).transpose()?;
        let (ledger, validation_received) = py.detach(|| {
            let ledger = match reason {
                Some(reason) => session.close_ledger(reason),
                None => session.ledger_sums(),
            };
            (ledger, session.validation_received())
        });
        let out = sums(py, &ledger)?;
        out.set_item("validation_received", validation_received)?;
        Ok(out)
    }

    fn refusals(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let session = self.session(py)?;
        let refusals = py.detach(|| session.refusals());
        let forgotten =
            (refusals.forgotten > 0).then(|| format!("{} older refusals were not kept", refusals.forgotten));
        Ok(forgotten.into_iter().chain(refusals.texts).collect())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.session(py)?;
        py.detach(|| session.close());
        Ok(())
    }
}
