//! What can go wrong with a session as a whole; what one client does wrong is refused and counted instead.

use thiserror::Error;

/// Errors of a session's calls.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SessionError {
    #[error("{0}")]
    Configuration(String),
    #[error("cannot listen at {host}: {reason}")]
    Listen { host: String, reason: String },
    #[error("cannot start the receiving thread: {0}")]
    Thread(String),
    /// A call about a simulation that makes no sense for it.
    #[error("{0}")]
    Simulation(String),
    /// The receiving thread cannot go on; every later call says so again.
    #[error("{0}")]
    Failed(String),
    #[error("the receiving session was closed")]
    Closed,
}

/// Why a connection is refused: the code of the `Refused` frame and its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
