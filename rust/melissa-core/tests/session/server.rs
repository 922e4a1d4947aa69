//! A server of several ranks: for each a session with its training buffer, and all of them known to each.

use crate::client::{Answer, Client, Identity};
use crate::study::{Study, parameters};
use melissa_core::buffer::BufferConfig;
use melissa_core::session::{SessionConfig, SessionError, Status};
use melissa_core::wire::distribution::Distribution;

pub struct Server {
    pub ranks: Vec<Study>,
    pub distribution: Distribution,
}

impl Server {
    pub fn start(nb_ranks: u32, config: &SessionConfig, buffer: &BufferConfig) -> Self {
        let start = |rank| Study::start(SessionConfig { rank, nb_ranks, ..config.clone() }, buffer.clone());
        let ranks: Vec<Study> = (0..nb_ranks).map(start).collect();
        let addresses: Vec<String> = ranks.iter().map(|rank| rank.session.address().to_owned()).collect();
        for rank in &ranks {
            rank.session.set_servers(addresses.clone()).unwrap();
        }
        Self { ranks, distribution: config.distribution }
    }

    pub fn has_several_ranks(&self) -> bool {
        self.ranks.len() > 1
    }

    /// The server rank that a time step belongs to.
    pub fn owner(&self, simulation: u32, time_step: u64) -> usize {
        self.distribution.rank_of(simulation, time_step, self.ranks.len() as u32) as usize
    }

    /// Makes an attempt known to every rank.
    pub fn register(&self, simulation: u32, attempt: u32, draw: u32) -> Result<(), SessionError> {
        self.ranks.iter().try_for_each(|rank| {
            rank.session.register(simulation, attempt, draw, parameters(simulation, draw))
        })
    }

    /// Whether a rank has finished this attempt.
    pub fn has_finished(&self, rank: usize, simulation: u32, attempt: u32) -> bool {
        let state = self.ranks[rank].state(simulation);
        state.is_some_and(|state| state.attempt == attempt && state.status == Status::Finished)
    }

    pub fn connect(&self, rank: usize, who: Identity) -> Result<Client, Answer> {
        Client::connect(self.ranks[rank].session.address(), who)
    }
}
