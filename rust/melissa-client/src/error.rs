//! What can go wrong on the client's side, each with the place, what was expected, and what to do next.

use melissa_core::schema::Dtype;
use melissa_core::wire::auth::NonceError;
use melissa_core::wire::handshake::HandshakeError;
use melissa_core::wire::header::{HeaderError, Kind};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Whose connection to which server: the start of every error's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub address: String,
    pub simulation: u32,
    pub attempt: u32,
    pub rank: u32,
    pub size: u32,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, simulation, attempt, rank, size } = self;
        write!(f, "simulation {simulation}, attempt {attempt}, rank {rank} of {size}, server {address}")
    }
}

/// What a client did when something went wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doing {
    Connecting,
    /// Waiting for a message of the handshake.
    Greeting(Kind),
    /// Waiting for the answer to `Join`.
    Joining,
    Sending {
        field: String,
        step: u64,
    },
    /// Waiting for the server to have everything.
    Finalizing,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Greeting(kind) => write!(f, "waiting for the server's {kind}"),
            Self::Joining => f.write_str("waiting for the server's Welcome at the first melissa_send"),
            Self::Sending { field, step } => write!(f, "sending step {step} of \"{field}\""),
            Self::Finalizing => f.write_str("waiting in melissa_finalize for the server to have every step"),
        }
    }
}

/// Why a call of the client failed. After any error that concerns the connection (not one about a wrong field, size,
/// dtype or order) every later call returns the same one.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    #[error(
        "{at}: the address of the server cannot be resolved ({source}). Expected host:port in MELISSA_SERVER_ADDRESS, \
         for each server rank one with commas between them, with host names that this machine knows"
    )]
    Address { at: Arc<Endpoint>, source: Arc<io::Error> },
    #[error(
        "{at}: cannot connect, after {:.1} s of trying ({source}). The server has ended, or this machine cannot reach it: see \
         the server's log, and that its address is one of a network that both machines share",
        .waited.as_secs_f64()
    )]
    Connect { at: Arc<Endpoint>, waited: Duration, source: Arc<io::Error> },
    #[error(
        "{at}: the server is connected, and no {expected} came from it within {:.1} s. It is overloaded or stopped, \
         or something else than a Melissa server listens there: see the server's log",
        .waited.as_secs_f64()
    )]
    HandshakeTimeout { at: Arc<Endpoint>, expected: Kind, waited: Duration },
    #[error(
        "{at}: what listens there does not hold this study's key, so nothing was sent to it. It is the server of \
         another study, or MELISSA_KEY_FILE names the key of another one: start the client by the launcher"
    )]
    WrongServer { at: Arc<Endpoint> },
    #[error(
        "{at}: the server speaks version {came} of the protocol and this client version {expected}: use one version \
         of Melissa on both sides"
    )]
    Protocol { at: Arc<Endpoint>, came: u32, expected: u32 },
    #[error("{at}: the server refused this client ({code}): {message}")]
    Refused { at: Arc<Endpoint>, code: String, message: String },
    #[error(
        "{at}: the study is being stopped early. The server discards what is sent from now on, so the solver can end"
    )]
    Stopped { at: Arc<Endpoint> },
    #[error(
        "{at}: the connection was lost while {doing}: {}. The server has ended or its machine cannot be reached: see \
         the server's log; a study that goes on starts this simulation again",
        .source.as_ref().map_or_else(|| "the server closed it".to_owned(), ToString::to_string)
    )]
    ServerLost { at: Arc<Endpoint>, doing: Doing, source: Option<Arc<io::Error>> },
    #[error("{at}: interrupted while {doing}; this connection cannot be used any more")]
    Interrupted { at: Arc<Endpoint>, doing: Doing },
    #[error(
        "{at}: what came from the server is no frame of Melissa: {source}. See that the address is the server's"
    )]
    Header { at: Arc<Endpoint>, source: HeaderError },
    #[error(
        "{at}: a message of the server breaks a rule: {source}. Use one version of Melissa on both sides"
    )]
    Message { at: Arc<Endpoint>, source: Arc<HandshakeError> },
    #[error(
        "{at}: the server sent {came}, and {expected} was expected while {doing}. Use one version of Melissa on both \
         sides"
    )]
    UnexpectedFrame { at: Arc<Endpoint>, came: Kind, expected: &'static str, doing: Doing },
    #[error(
        "{at}: the server's Welcome does not fit this client: {reason}. Use one version of Melissa on both sides"
    )]
    Welcome { at: Arc<Endpoint>, reason: String },
    #[error(
        "{at}: {reason}. Start the client by the launcher, which hands it the addresses of all server ranks of one study"
    )]
    ServerRanks { at: Arc<Endpoint>, reason: String },
    #[error("{at}: {source}")]
    Nonce { at: Arc<Endpoint>, source: NonceError },
    #[error(
        "{at}: this process is a fork of the one that connected (process {connected}, now {current}). Call \
         melissa_init and melissa_send in one process"
    )]
    Forked { at: Arc<Endpoint>, connected: u32, current: u32 },
    #[error(
        "{at}: rank {} is not below size {}: pass this rank's number and the number of ranks",
        .at.rank, .at.size
    )]
    Rank { at: Arc<Endpoint> },

    #[error("{at}: field \"{name}\" cannot be declared: {source}")]
    FieldName { at: Arc<Endpoint>, name: String, source: Arc<HandshakeError> },
    #[error(
        "{at}: field \"{name}\" was declared with {before} elements of {dtype_before}, and now again with {now} of \
         {dtype_now}. Call melissa_init once per field"
    )]
    Redeclared {
        at: Arc<Endpoint>,
        name: String,
        before: usize,
        dtype_before: Dtype,
        now: usize,
        dtype_now: Dtype,
    },
    #[error(
        "{at}: field \"{name}\" is declared after the first melissa_send. Call melissa_init for every field before it"
    )]
    LateField { at: Arc<Endpoint>, name: String },
    #[error(
        "{at}: the declarations of {fields} fields need {bytes} bytes, and the server reads {limit}: declare fewer \
         fields or give them shorter names"
    )]
    TooManyFields { at: Arc<Endpoint>, fields: usize, bytes: u64, limit: u64 },
    #[error("{at}: field \"{name}\" was never declared. {}", known_fields(.known))]
    UnknownField { at: Arc<Endpoint>, name: String, known: Vec<String> },
    #[error(
        "{at}: melissa_send of \"{field}\" got {got} elements, and melissa_init declared {expected} on this rank"
    )]
    WrongSize { at: Arc<Endpoint>, field: String, expected: usize, got: usize },
    #[error(
        "{at}: the study keeps \"{field}\" as {wanted}, and {got} cannot become that without loss: declare and send \
         the field as {wanted}, or change the study's data_type"
    )]
    WrongDtype { at: Arc<Endpoint>, field: String, wanted: Dtype, got: Dtype },
    #[error(
        "{at}: the solver sent step {step} of \"{field}\" before step {missing} of \"{behind}\". Send every declared \
         field once per time step"
    )]
    Ahead { at: Arc<Endpoint>, field: String, step: u64, behind: String, missing: u64 },
    #[error(
        "{at}: melissa_finalize was called while the fields have different numbers of time steps: {}. Send every \
         declared field once per time step",
        .counts.iter().map(|(name, count)| format!("{count} of \"{name}\"")).collect::<Vec<_>>().join(", ")
    )]
    UnequalSteps { at: Arc<Endpoint>, counts: Vec<(String, u64)> },
    #[error("{at}: {call} was called after melissa_finalize, which is the last call of a solver")]
    Finalized { at: Arc<Endpoint>, call: &'static str },
}

fn known_fields(known: &[String]) -> String {
    if known.is_empty() {
        return "No field is: call melissa_init for each field before the first melissa_send".into();
    }
    format!("Declared are: \"{}\". Call melissa_init for it, or see its spelling", known.join("\", \""))
}
