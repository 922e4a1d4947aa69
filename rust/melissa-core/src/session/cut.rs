//! What a checkpoint keeps of a session, and a session that goes on from it.
//!
//! The cut is a command like others: between two turns of the receiving thread nothing is half received or half
//! published. Samples that are complete and wait for room are in no training buffer, so that they are incomplete for
//! the checkpoint: their clients send them again.

use super::counters::Counters;
use super::reception::Reception;
use super::state::Status;
use super::{Session, SessionError};
use crate::buffer::SampleKey;
use crate::error::BufferError;
use crate::ledger::{Ledger, LedgerState, LedgerStateError, Reason};
use crate::snapshot::Snapshot;
use crate::sync::lock;
use crate::wire::distribution::ServerRank;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use thiserror::Error;

/// A session at a cut, without its ledger and its training buffer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionState {
    /// Those that were registered, by id.
    pub simulations: Vec<SimulationCut>,
    /// Time steps of a simulation, as far as they are known.
    pub steps_per_simulation: Option<u64>,
    pub bytes_received: u64,
    pub bytes_discarded: u64,
    pub connections_accepted: u64,
    pub connections_refused: u64,
    pub duplicates_refused: u64,
    pub room_wait_seconds: f64,
    /// Whose time steps the ledger numbers; `None` without a session.
    pub server_rank: Option<CutRank>,
}

/// A server rank in a [`SessionState`]: the ledger numbers the time steps that go to this rank, by this rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutRank {
    pub rank: u32,
    pub nb_ranks: u32,
    /// The name in configurations.
    pub distribution: String,
}

impl CutRank {
    fn of(rank: ServerRank) -> Self {
        Self { rank: rank.rank, nb_ranks: rank.nb_ranks, distribution: rank.distribution.name().to_owned() }
    }

    /// Whether the same time steps have the same numbers.
    fn check(&self, rank: ServerRank) -> Result<(), LedgerStateError> {
        let now = Self::of(rank);
        // One rank gets everything by any rule.
        if *self == now || (self.nb_ranks == 1 && now.nb_ranks == 1) {
            return Ok(());
        }
        Err(LedgerStateError::OtherRank { saved: self.to_string(), now: now.to_string() })
    }
}

impl fmt::Display for CutRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} under distribution {}", self.rank, self.nb_ranks, self.distribution)
    }
}

/// A simulation in a [`SessionState`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulationCut {
    pub simulation: u32,
    pub attempt: u32,
    pub draw: u32,
    /// It has finalized on this server rank, and all that it sent is in the training buffer or was drawn from it.
    pub finished: bool,
}

/// What [`Session::cut`] gives.
#[derive(Debug)]
pub struct SessionCut {
    pub session: SessionState,
    pub ledger: LedgerState,
    pub buffer: Snapshot,
}

/// Why there is no cut.
#[derive(Debug, Error)]
pub enum CutError {
    #[error("the study is being stopped: samples that waited for room are thrown away already")]
    Stopping,
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// What a restarted session is told of each simulation that has been registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoredSimulation {
    pub simulation: u32,
    /// The highest attempt so far; the next one is higher.
    pub attempt: u32,
    pub draw: u32,
    /// `Finished` and `Dropped` are final; all others run again.
    pub status: Status,
}

/// What a session goes on from.
#[derive(Clone, Debug, Default)]
pub struct RestoredSession {
    pub session: SessionState,
    pub ledger: LedgerState,
    pub simulations: Vec<RestoredSimulation>,
}

impl RestoredSession {
    /// The ledger, in which the present draw of each simulation that runs again is open, and everything else closed.
    pub(super) fn ledger(
        &self,
        nb_time_steps: Option<u64>,
        rank: ServerRank,
    ) -> Result<Ledger, LedgerStateError> {
        let known: HashMap<u32, (u32, Status)> =
            // Of one that stands there twice the first word counts, here and in the session.
            self.simulations.iter().rev().map(|known| (known.simulation, (known.draw, known.status))).collect();
        if let Some(saved) = &self.session.server_rank {
            saved.check(rank)?;
        }
        let mut state = self.ledger.clone();
        for steps in &mut state.draws {
            let (draw, status) = known.get(&steps.simulation).copied().unwrap_or((0, Status::Planned));
            steps.given_up = if steps.draw < draw || status.is_final() {
                steps.given_up.or(Some(Reason::ClientFailed))
            } else {
                None
            };
        }
        Ledger::restored(nb_time_steps, rank, &state)
    }
}

impl Session {
    /// Takes a cut: session, ledger and training buffer at one moment, between two turns of the receiving thread.
    /// Nothing is received meanwhile, which costs a few cache lines per sample of the population.
    ///
    /// # Errors
    /// `Stopping`; those of [`crate::buffer::Buffer::snapshot`]; when the session has failed or was closed.
    pub fn cut(&self) -> Result<SessionCut, CutError> {
        self.ask(|reception| reception.cut())?
    }
}

impl Reception {
    fn cut(&mut self) -> Result<SessionCut, CutError> {
        if self.stopped {
            return Err(CutError::Stopping);
        }
        let buffer = self.buffer.snapshot()?;
        let unpublished: Vec<SampleKey> = self.room.keys_waiting().collect();
        let ledger = lock(&self.shared.ledger).state(&unpublished);
        let simulations = self
            .simulations
            .iter()
            .zip(0..)
            .filter(|(entry, _)| entry.attempt > 0)
            .map(|(entry, simulation)| SimulationCut {
                simulation,
                attempt: entry.attempt,
                draw: entry.draw,
                // What came for validation is in no buffer that is kept.
                finished: entry.status == Status::Finished
                    && !entry.sample_waits
                    && !self.is_for_validation(simulation),
            })
            .collect();
        let counters = self.counters();
        let session = SessionState {
            simulations,
            steps_per_simulation: self.steps_per_simulation,
            bytes_received: counters.bytes_received,
            bytes_discarded: counters.bytes_discarded,
            connections_accepted: counters.connections_accepted,
            connections_refused: counters.connections_refused,
            duplicates_refused: counters.duplicates_refused,
            room_wait_seconds: counters.room_wait_seconds,
            server_rank: Some(CutRank::of(self.config.server_rank())),
        };
        Ok(SessionCut { session, ledger, buffer })
    }

    /// Goes on from a cut; before the first turn.
    pub(super) fn resume(&mut self, restored: &RestoredSession) {
        let state = &restored.session;
        self.schema = self.buffer.schema();
        self.steps_per_simulation = self.steps_per_simulation.or(state.steps_per_simulation);
        self.room.waited_before(Duration::try_from_secs_f64(state.room_wait_seconds).unwrap_or_default());
        self.counters = Counters {
            samples_received: lock(&self.shared.ledger).sums().complete,
            bytes_received: state.bytes_received,
            bytes_discarded: state.bytes_discarded,
            connections_accepted: state.connections_accepted,
            connections_refused: state.connections_refused,
            duplicates_refused: state.duplicates_refused,
            ..Counters::default()
        };
        for known in &restored.simulations {
            let RestoredSimulation { simulation, attempt, draw, status } = *known;
            match self.check_known(simulation) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(unknown) => {
                    log::warn!("the checkpoint has a simulation that stays out: {unknown}");
                    continue;
                }
            }
            let entry = &mut self.simulations[simulation as usize];
            if entry.settled || entry.attempt > 0 {
                log::error!(
                    "the checkpoint lists simulation {simulation} twice: what stands there again (attempt {attempt}, draw \
                     {draw}, {status}) is passed over, and attempt {}, draw {}, {} counts",
                    entry.attempt,
                    entry.draw,
                    entry.status
                );
                continue;
            }
            (entry.attempt, entry.draw, entry.ended_attempt) = (attempt, draw, attempt);
            entry.steps = lock(self.shared.ledger_of(simulation)).nb_complete(simulation, draw);
            if status.is_final() {
                self.settle(simulation, status);
            }
        }
        let ledger = lock(&self.shared.ledger);
        for (simulation, draw) in ledger.draws() {
            if self.simulations.get(simulation as usize).is_some_and(|entry| draw < entry.draw) {
                self.settled_steps += ledger.nb_complete(simulation, draw);
            }
        }
    }
}
