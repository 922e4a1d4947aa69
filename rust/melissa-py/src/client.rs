//! `Client`: one rank of a Python solver.

use crate::arrays;
use crate::errors;
use melissa_client::{Client, ClientConfig, ClientError, InitOutcome, Values};
use melissa_core::schema::Dtype;
use melissa_core::wire::auth::StudyKey;
use numpy::{PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

fn client_error(py: Python<'_>, error: &ClientError) -> PyErr {
    let class = match error {
        ClientError::Refused { .. } => &errors::REFUSED_ERROR,
        ClientError::Stopped { .. } => &errors::STUDY_STOPPED,
        ClientError::WrongServer { .. } => &errors::AUTHENTICATION_ERROR,
        ClientError::Address { .. }
        | ClientError::Connect { .. }
        | ClientError::HandshakeTimeout { .. }
        | ClientError::ServerLost { .. } => &errors::SERVER_LOST_ERROR,
        ClientError::Forked { .. } => &errors::FORKED_PROCESS_ERROR,
        ClientError::Protocol { .. }
        | ClientError::Header { .. }
        | ClientError::Message { .. }
        | ClientError::UnexpectedFrame { .. }
        | ClientError::Welcome { .. } => &errors::PROTOCOL_ERROR,
        ClientError::WrongSize { .. } | ClientError::WrongDtype { .. } | ClientError::UnknownField { .. } => {
            &errors::SCHEMA_ERROR
        }
        _ => &errors::CLIENT_ERROR,
    };
    class.error(py, error.to_string())
}

struct State {
    client: Client,
    fields: Vec<(String, Dtype)>,
}

/// One rank of one simulation, connected to the server.
#[pyclass(frozen, module = "melissa._melissa", name = "Client")]
pub struct PyClient {
    state: Mutex<State>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a call of the client detached; a signal's exception ends it and is raised.
fn call<T: Send>(
    py: Python<'_>,
    run: impl FnOnce(&dyn Fn() -> bool) -> Result<T, ClientError> + Send,
) -> PyResult<T> {
    let signal = Mutex::new(None);
    let result = py.detach(|| {
        let interrupt = || {
            Python::attach(|py| py.check_signals()).is_err_and(|error| {
                *signal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                true
            })
        };
        run(&interrupt)
    });
    if let Some(error) = signal.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    result.map_err(|error| client_error(py, &error))
}

fn dtype(name: &str) -> PyResult<Dtype> {
    Dtype::from_name(name).ok_or_else(|| {
        PyValueError::new_err(format!(
            "dtype \"{name}\" cannot be sent; the dtypes are {}",
            Dtype::ALL.map(Dtype::name).join(", ")
        ))
    })
}

#[pymethods]
impl PyClient {
    #[new]
    #[pyo3(signature = (address, key, *, study_epoch, simulation_id, attempt, rank=0, size=1, timeout=60.0))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python constructor")]
    fn new(
        py: Python<'_>,
        address: String,
        key: &[u8],
        study_epoch: u64,
        simulation_id: u32,
        attempt: u32,
        rank: u32,
        size: u32,
        timeout: f64,
    ) -> PyResult<Self> {
        let key = StudyKey::from_bytes(key).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let timeout = Duration::try_from_secs_f64(timeout).map_err(|_| {
            PyValueError::new_err(format!("timeout: a number of seconds was expected, {timeout} came"))
        })?;
        let config = ClientConfig {
            study_epoch,
            simulation: simulation_id,
            attempt,
            rank,
            size,
            timeout,
            ..ClientConfig::new(address, key)
        };
        let client = call(py, |interrupt| Client::connect(config, Some(interrupt)))?;
        Ok(Self { state: Mutex::new(State { client, fields: Vec::new() }) })
    }

    /// Declare a field; False when it was declared so before.
    fn init(&self, py: Python<'_>, field_name: String, size: usize, dtype: &str) -> PyResult<bool> {
        let dtype = self::dtype(dtype)?;
        py.detach(|| {
            let mut state = lock(&self.state);
            let outcome = state.client.init(&field_name, size, dtype)?;
            if outcome == InitOutcome::New {
                state.fields.push((field_name, dtype));
            }
            Ok(outcome == InitOutcome::New)
        })
        .map_err(|error| client_error(py, &error))
    }

    fn send(&self, py: Python<'_>, field_name: &str, values: &Bound<'_, PyAny>) -> PyResult<()> {
        let declared = py.detach(|| {
            let state = lock(&self.state);
            state.fields.iter().find(|(name, _)| name == field_name).map(|(_, dtype)| *dtype)
        });
        // An unknown field is the client's to refuse, with the names that it knows.
        let dtype = declared.unwrap_or(Dtype::F64);
        let array = arrays::contiguous(values, dtype, field_name)?.into_any();
        macro_rules! send {
            ($($variant:ident: $element:ty),*) => {
                match dtype {
                    $(Dtype::$variant => {
                        let array = array.cast::<numpy::PyArray1<$element>>()?;
                        let array: PyReadonlyArray1<'_, $element> = array.readonly();
                        let values = Values::$variant(array.as_slice()?);
                        call(py, |interrupt| {
                            lock(&self.state).client.send(field_name, values, Some(interrupt))
                        })
                    })*
                }
            };
        }
        send!(F32: f32, F64: f64, I32: i32, I64: i64, U8: u8)
    }

    fn finalize(&self, py: Python<'_>) -> PyResult<()> {
        call(py, |interrupt| lock(&self.state).client.finalize(Some(interrupt)))
    }

    /// Time steps of a field that were sent, or skipped because the server had them; None for an unknown field.
    fn steps(&self, py: Python<'_>, field_name: &str) -> Option<u64> {
        py.detach(|| lock(&self.state).client.steps(field_name))
    }
}
