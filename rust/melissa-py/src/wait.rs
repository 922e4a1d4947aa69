//! Waits that leave the interpreter to others and end with Ctrl-C.

use crate::errors;
use melissa_core::error::BufferError;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::time::{Duration, Instant};

/// How often a wait comes back to see whether a signal came.
const SIGNAL_POLL: Duration = Duration::from_millis(100);

/// The end of a wait of so many seconds; `None` for no end.
pub fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = timeout else { return Ok(None) };
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).map_err(|_| {
        PyValueError::new_err(format!("timeout: a number of seconds was expected, {seconds} came"))
    })?;
    Ok(Instant::now().checked_add(duration))
}

/// Runs `attempt` detached from the interpreter, in slices, until it gives something else than a time-out.
pub fn wait<T: Send>(
    py: Python<'_>,
    timeout: Option<f64>,
    mut attempt: impl FnMut(Option<Instant>) -> Result<T, BufferError> + Send,
) -> PyResult<T> {
    let end = deadline(timeout)?;
    loop {
        let slice = Instant::now() + SIGNAL_POLL;
        let until = end.map_or(slice, |end| end.min(slice));
        match py.detach(|| attempt(Some(until))) {
            Err(BufferError::Timeout) => {
                py.check_signals()?;
                if end.is_some_and(|end| Instant::now() >= end) {
                    return Err(errors::buffer_error(py, &BufferError::Timeout));
                }
            }
            Err(error) => return Err(errors::buffer_error(py, &error)),
            Ok(value) => return Ok(value),
        }
    }
}

/// The process that a thing belongs to: its threads, locks and slab do not exist in a forked child.
#[derive(Clone, Copy, Debug)]
pub struct Owner(u32);

impl Owner {
    pub fn here() -> Self {
        Self(std::process::id())
    }

    pub fn check(self, py: Python<'_>, what: &str) -> PyResult<()> {
        let here = std::process::id();
        if here == self.0 {
            return Ok(());
        }
        Err(errors::FORKED_PROCESS_ERROR.error(
            py,
            format!(
                "this {what} belongs to process {} and was used in its forked child {here}; use it in the parent \
                 only (DataLoader: num_workers=0; multiprocessing: the \"spawn\" method)",
                self.0
            ),
        ))
    }
}
