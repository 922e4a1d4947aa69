//! What a session is told when it starts.

use super::SessionError;
use crate::schema::Dtype;
use crate::wire::auth::StudyKey;
use crate::wire::distribution::{Distribution, ServerRank};
use std::time::Duration;

/// Receive buffer of each socket in bytes: fixed, as a thousand autotuned ones can hold more than a gigabyte.
pub const RECEIVE_BUFFER_SIZE: usize = 256 * 1024;
/// Time that a peer has from its connection to its proof of the study key.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not proved the study key yet; further ones wait in the kernel.
pub const MAX_PENDING_HANDSHAKES: usize = 64;

/// The dtype that the training buffer holds floating-point fields in. Integer fields stay what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataType {
    F32,
    F64,
    /// What the first simulation's solver hands over.
    AsSent,
}

impl DataType {
    pub const ALL: [Self; 3] = [Self::F32, Self::F64, Self::AsSent];

    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::AsSent => "as_sent",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|data_type| data_type.name() == name)
    }

    /// What a field that a solver hands over as `sent` has on the wire and in the buffer.
    pub(super) const fn wanted(self, sent: Dtype) -> Dtype {
        match self {
            Self::F32 if sent.is_float() => Dtype::F32,
            Self::F64 if sent.is_float() => Dtype::F64,
            _ => sent,
        }
    }
}

/// The study and the socket of one session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    pub key: StudyKey,
    /// How often the study's server was started; clients of another epoch are refused.
    pub study_epoch: u64,
    /// In the order in which samples hold them.
    pub field_names: Vec<String>,
    pub nb_parameters: usize,
    /// Time steps of every simulation, when the configuration says so.
    pub nb_time_steps: Option<u64>,
    /// Simulations of the study; their ids are 0 to `planned - 1`.
    pub planned: u32,
    /// Simulations whose samples are for validation; their ids follow those of the others. Server rank 0 alone gets them, and
    /// they never get into the training buffer.
    pub validation: u32,
    pub data_type: DataType,
    /// Name or address to listen at, on a port of the kernel's choice.
    pub host: String,
    /// What clients are told instead of `host`.
    pub advertise: Option<String>,
    /// This server rank, and how many there are.
    pub rank: u32,
    pub nb_ranks: u32,
    /// How the time steps that are trained on are dealt out to the server ranks.
    pub distribution: Distribution,
    /// Silence after which a connected simulation is reported; `None`: never.
    pub simulation_timeout: Option<Duration>,
    pub receive_buffer_size: usize,
    /// Whether clients on this host may come by a Unix socket, which is faster than TCP on loopback.
    pub local_socket: bool,
    pub handshake_timeout: Duration,
    pub max_pending_handshakes: usize,
    /// Whether clients shall send, and the session verify, a checksum of every payload.
    pub payload_crc: bool,
}

impl SessionConfig {
    /// A session on the loopback interface with the defaults of everything that has one.
    pub fn new(
        key: StudyKey,
        study_epoch: u64,
        field_names: Vec<String>,
        nb_parameters: usize,
        planned: u32,
    ) -> Self {
        Self {
            key,
            study_epoch,
            field_names,
            nb_parameters,
            nb_time_steps: None,
            planned,
            validation: 0,
            data_type: DataType::F32,
            host: "127.0.0.1".into(),
            advertise: None,
            rank: 0,
            nb_ranks: 1,
            distribution: Distribution::RoundRobin,
            simulation_timeout: None,
            receive_buffer_size: RECEIVE_BUFFER_SIZE,
            local_socket: true,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            max_pending_handshakes: MAX_PENDING_HANDSHAKES,
            payload_crc: false,
        }
    }

    /// Where the time steps that are trained on go.
    pub(super) const fn server_rank(&self) -> ServerRank {
        ServerRank { rank: self.rank, nb_ranks: self.nb_ranks, distribution: self.distribution }
    }

    /// Where the time steps of simulations for validation go.
    pub(super) const fn server_rank_of_validation(&self) -> ServerRank {
        ServerRank { distribution: Distribution::First, ..self.server_rank() }
    }

    /// Simulations that this rank receives: those for validation are rank 0's.
    pub(super) const fn nb_simulations(&self) -> u32 {
        if self.rank == 0 { self.planned + self.validation } else { self.planned }
    }

    pub(super) fn check(&self) -> Result<(), SessionError> {
        let names = &self.field_names;
        let twice = names.iter().enumerate().find(|&(index, name)| names[..index].contains(name));
        let problem = if names.is_empty() {
            Some("a study needs one field or more: study_options.field_names is empty".to_owned())
        } else if let Some((_, name)) = twice {
            Some(format!("field \"{name}\" stands twice in study_options.field_names"))
        } else if self.rank >= self.nb_ranks {
            Some(format!(
                "server rank {} of {} was asked for: ranks count from 0 and stay below their number",
                self.rank, self.nb_ranks
            ))
        } else if self.distribution == Distribution::First {
            Some(format!(
                "dl_config.distribution is \"{}\", and was expected to be \"{}\" or \"{}\": with it, ranks from 1 on would \
                 have nothing to train on",
                Distribution::First,
                Distribution::RoundRobin,
                Distribution::Simulation
            ))
        } else if self.planned.checked_add(self.validation).is_none() {
            Some(format!(
                "{} simulations and {} more for validation were asked for: there are 2^32 ids at most",
                self.planned, self.validation
            ))
        } else if self.max_pending_handshakes == 0 || self.receive_buffer_size == 0 {
            Some("a session needs room for one handshake and for received bytes: 0 came".to_owned())
        } else {
            None
        };
        problem.map_or(Ok(()), |text| Err(SessionError::Configuration(text)))
    }
}
