//! The Python extension `melissa._melissa`: parse, detach, call, map the error.

#![allow(missing_debug_implementations, reason = "Python sees __repr__, nobody sees Debug")]

mod arrays;
mod batch;
mod buffer;
mod checkpoint;
mod client;
mod errors;
mod heartbeat;
mod log_bridge;
mod receiver;
mod wait;

use pyo3::prelude::pymodule;

#[pymodule]
mod _melissa {
    #[pymodule_export]
    use super::batch::{PyBatch, PyPrefetcher};
    #[pymodule_export]
    use super::buffer::{PyBuffer, PySample};
    #[pymodule_export]
    use super::checkpoint::{PyCheckpointFile, PyCut, PyWriting};
    #[pymodule_export]
    use super::client::PyClient;
    #[pymodule_export]
    use super::heartbeat::PyHeartbeat;
    #[pymodule_export]
    use super::log_bridge::take_log;
    #[pymodule_export]
    use super::receiver::{PyReceiver, PySimulationState};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::log_bridge::install();
        Ok(())
    }

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python knows")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
