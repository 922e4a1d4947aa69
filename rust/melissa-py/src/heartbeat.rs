//! `Heartbeat`: signs of life that do not wait for the interpreter.

use melissa_core::heartbeat::Heartbeat;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Writes the same message to a socket every so often, from a thread that needs no interpreter.
#[pyclass(frozen, module = "melissa._melissa", name = "Heartbeat")]
pub struct PyHeartbeat(Mutex<Heartbeat>);

impl PyHeartbeat {
    fn heartbeat(&self) -> MutexGuard<'_, Heartbeat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyHeartbeat {
    #[new]
    fn new(descriptor: i32, beat: Vec<u8>, period: f64) -> PyResult<Self> {
        let period = Duration::try_from_secs_f64(period).map_err(|_| {
            PyValueError::new_err(format!("period: a number of seconds was expected, {period} came"))
        })?;
        if descriptor < 0 {
            return Err(PyValueError::new_err(format!("descriptor: {descriptor} is no open socket")));
        }
        // SAFETY: the descriptor is used for this one call, which copies it; a number that is none is an error of that.
        let socket = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
        Ok(Self(Mutex::new(Heartbeat::start(socket, beat, period)?)))
    }

    #[getter]
    fn is_beating(&self) -> bool {
        self.heartbeat().is_beating()
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.heartbeat().stop());
    }
}
