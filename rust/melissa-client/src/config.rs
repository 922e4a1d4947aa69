//! Who a client is and where its server ranks listen.

use melissa_core::wire::auth::StudyKey;
use std::time::Duration;

/// One rank of one simulation, and the server that it belongs to.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of the server; of all server ranks, rank 0 first and commas between them, if there are several.
    pub address: String,
    pub key: StudyKey,
    /// Starts of this study's server, counted from 1: a server of another epoch refuses this client.
    pub study_epoch: u64,
    pub simulation: u32,
    /// Starts of this simulation, counted from 1: the server keeps to the highest.
    pub attempt: u32,
    /// This rank among the `size` ranks of the solver.
    pub rank: u32,
    pub size: u32,
    /// For connecting and the handshake together.
    pub timeout: Duration,
    /// How long the server's machine may leave the kernel's probes of an idle connection unanswered.
    pub peer_silence: Duration,
    /// Whether to take the server's Unix socket where there is one: on its own host.
    pub local_socket: bool,
}

impl ClientConfig {
    /// The addresses of the server ranks, rank 0 first.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.address.split(',').map(str::trim)
    }

    /// A serial solver's first attempt at simulation 0 in the first epoch: 60 s to connect, 120 s of silence.
    pub fn new(address: impl Into<String>, key: StudyKey) -> Self {
        Self {
            address: address.into(),
            key,
            study_epoch: 1,
            simulation: 0,
            attempt: 1,
            rank: 0,
            size: 1,
            timeout: Duration::from_secs(60),
            peer_silence: Duration::from_secs(120),
            local_socket: true,
        }
    }
}
