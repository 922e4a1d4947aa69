//! What the control plane asks of the receiving thread; each runs in that thread, between two turns.

use super::SessionError;
use super::connection::{ConnectionId, Input, Phase, Stage};
use super::counters::{Counters, Refusals};
use super::error::Refusal;
use super::reception::Reception;
use super::state::{SimulationState, Status};
use crate::ledger::Reason;
use crate::planted::{Bug, planted};
use crate::sync::{Arc, lock};
use crate::wire::handshake::code;
use crate::wire::header::{Header, Kind};

impl Reception {
    /// Whether this server rank receives the simulation; if not, another one does.
    ///
    /// # Errors
    /// When the study does not have it, in words.
    pub(super) fn check_known(&self, simulation: u32) -> Result<bool, String> {
        let (planned, validation) = (self.config.planned, self.config.validation);
        if simulation < planned + validation {
            return Ok(simulation < self.config.nb_simulations());
        }
        let more = match validation {
            0 => String::new(),
            1 => format!(", and one for validation, {planned}"),
            _ => format!(", and {validation} for validation, {planned} to {}", planned + validation - 1),
        };
        Err(format!(
            "simulation {simulation} is unknown: this study has {planned} simulations, 0 to {}{more}",
            planned.saturating_sub(1)
        ))
    }

    /// Takes note of the addresses of all server ranks.
    pub(super) fn set_servers(&mut self, addresses: Vec<String>) -> Result<(), SessionError> {
        let (rank, nb_ranks) = (self.config.rank as usize, self.config.nb_ranks as usize);
        if addresses.len() != nb_ranks || addresses[rank] != self.address {
            return Err(SessionError::Configuration(format!(
                "the addresses of {nb_ranks} server ranks were expected, that of rank {rank} being {}, and {} came: {}",
                self.address,
                addresses.len(),
                addresses.join(", ")
            )));
        }
        self.servers = addresses;
        Ok(())
    }

    /// Takes note of an attempt that is about to be submitted; it ends those before it.
    pub(super) fn register(
        &mut self,
        simulation: u32,
        attempt: u32,
        draw: u32,
        parameters: Vec<f64>,
    ) -> Result<(), SessionError> {
        if !self.check_known(simulation).map_err(SessionError::Simulation)? {
            return Ok(());
        }
        let entry = &self.simulations[simulation as usize];
        let problem = if parameters.len() != self.config.nb_parameters {
            Some(format!(
                "{} parameters came, and study_options.nb_parameters is {}",
                parameters.len(),
                self.config.nb_parameters
            ))
        } else if self.stopped {
            Some("the study is being stopped".to_owned())
        } else if entry.settled {
            Some(format!("it is {} already", entry.status))
        } else if self.servers.is_empty() {
            Some(format!(
                "nobody has said where the {} server ranks listen (set_servers), and clients have to be told",
                self.config.nb_ranks
            ))
        } else if attempt <= entry.attempt {
            Some(format!("attempt {attempt} came after attempt {}: attempts increase", entry.attempt))
        } else if draw < entry.draw {
            Some(format!("draw {draw} came after draw {}: draws do not decrease", entry.draw))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(SessionError::Simulation(format!(
                "simulation {simulation} cannot be registered: {problem}"
            )));
        }
        let old_draw = entry.draw;
        let keeps = planted(Bug::ReopenedComplete) && entry.status == Status::Finished;
        let draw = if keeps { old_draw } else { draw };
        if entry.run.is_some() {
            let text = format!("attempt {attempt} of simulation {simulation} takes the place of this one");
            self.break_attempt(simulation, None, &text, &Refusal::new(code::ATTEMPT, text.clone()));
        }
        if draw > old_draw {
            let mut ledger = lock(self.shared.ledger_of(simulation));
            ledger.drop_incomplete(simulation, old_draw, Reason::ClientFailed);
        }
        let for_validation = self.is_for_validation(simulation);
        let entry = &mut self.simulations[simulation as usize];
        if draw > old_draw {
            let steps = std::mem::take(&mut entry.steps);
            self.settled_steps += if for_validation { 0 } else { steps };
        }
        (entry.attempt, entry.draw, entry.parameters) = (attempt, draw, Arc::from(parameters));
        entry.host.clear();
        entry.error.clear();
        entry.status = Status::Planned;
        self.changed(simulation, true);
        Ok(())
    }

    /// Every server rank has the simulation finished: no further attempt of it will come.
    pub(super) fn confirm(&mut self, simulation: u32) -> Result<(), SessionError> {
        if !self.check_known(simulation).map_err(SessionError::Simulation)? {
            return Ok(());
        }
        let entry = &self.simulations[simulation as usize];
        if entry.status == Status::Finished {
            if !entry.settled {
                self.close_finished(simulation);
            }
            return Ok(());
        }
        // Whoever confirms may not have heard of the stop yet.
        if self.stopped {
            return Ok(());
        }
        Err(SessionError::Simulation(format!(
            "simulation {simulation} cannot be confirmed: it is {} on server rank {}, and was expected to be {}",
            entry.status,
            self.config.rank,
            Status::Finished
        )))
    }

    /// The registered attempt is dead: its connections are closed and it may not come again.
    pub(super) fn abandon_attempt(&mut self, simulation: u32) -> Result<(), SessionError> {
        if !self.check_known(simulation).map_err(SessionError::Simulation)? {
            return Ok(());
        }
        let entry = &mut self.simulations[simulation as usize];
        if entry.status.is_final() {
            return Ok(());
        }
        entry.ended_attempt = entry.attempt;
        if entry.run.is_some() {
            let text = format!("attempt {} of simulation {simulation} was given up", entry.attempt);
            self.break_attempt(simulation, None, &text, &Refusal::new(code::ATTEMPT, text.clone()));
        }
        Ok(())
    }

    /// Gives a simulation up for good.
    pub(super) fn finish(&mut self, simulation: u32, reason: Reason) -> Result<(), SessionError> {
        if !self.check_known(simulation).map_err(SessionError::Simulation)? {
            return Ok(());
        }
        if reason == Reason::Untrained {
            return Err(SessionError::Simulation(format!(
                "simulation {simulation} cannot be given up as \"{reason}\": that is the end of samples, not of simulations"
            )));
        }
        let entry = &self.simulations[simulation as usize];
        if entry.settled {
            return Ok(());
        }
        let draw = entry.draw;
        let text =
            format!("simulation {simulation} was given up ({reason}): nothing of it is wanted any more");
        let connections = self.end_run(simulation);
        lock(self.shared.ledger_of(simulation)).drop_incomplete(simulation, draw, reason);
        for id in connections {
            self.farewell(id, &Refusal::new(code::FINISHED, text.clone()));
        }
        if self.simulations[simulation as usize].error.is_empty() {
            self.simulations[simulation as usize].error = text;
        }
        self.settle(simulation, Status::Dropped);
        Ok(())
    }

    /// Ends the study early: clients are told to stop, and what they still send is counted and thrown away.
    pub(super) fn stop(&mut self) {
        if self.stopped || self.over {
            return;
        }
        self.stopped = true;
        self.drop_waiting_samples();
        let ids: Vec<ConnectionId> = self.connections.ids().collect();
        for id in ids {
            self.stop_connection(id);
        }
        for simulation in 0..self.config.nb_simulations() {
            let entry = &mut self.simulations[simulation as usize];
            if entry.settled {
                continue;
            }
            if entry.status == Status::Finished {
                // Whatever another server rank lacks of it, this one has everything.
                self.close_finished(simulation);
                continue;
            }
            let mut ledger = lock(self.shared.ledger_of(simulation));
            ledger.drop_incomplete(simulation, entry.draw, Reason::StoppedEarly);
            drop(ledger);
            if entry.error.is_empty() {
                "the study was stopped early".clone_into(&mut entry.error);
            }
            self.settle(simulation, Status::Dropped);
        }
        log::info!("the study is stopped early: clients are told, and what they still send is thrown away");
    }

    fn stop_connection(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Stage::Member(member) = &mut connection.stage else { return };
        let (simulation, rank) = (member.simulation, member.rank);
        // Another connection of this rank is that of an attempt that came after this one had its answer.
        let told = self.simulations[simulation as usize]
            .run
            .as_ref()
            .and_then(|run| run.ranks.get(&rank))
            .is_none_or(|rank| rank.acknowledged || rank.connection != Some(id));
        if told {
            return;
        }
        let finalized = matches!(member.phase, Phase::Finalized);
        member.phase = Phase::Stopped;
        member.wait = None;
        match connection.input {
            Input::Body { header, place, have } => {
                connection.input = Input::Discard { left: (place.len - have) as u64 };
                self.count_stopped(id, &header);
            }
            Input::Placing(header) => {
                connection.input = Input::Discard { left: header.payload_length };
                self.count_stopped(id, &header);
            }
            Input::Control { ref header, ref payload } => {
                connection.input = Input::Discard { left: header.payload_length - payload.len() as u64 };
            }
            Input::Header | Input::Discard { .. } => {}
        }
        // A rank that has finalized waits for one answer only.
        let kind = if finalized { Kind::FinalizeAck } else { Kind::Stop };
        self.send(id, &Header::control(kind, 0).encode());
        self.enqueue(id);
    }

    /// The simulations that changed since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<SimulationState> {
        // The caller gets all there is: nobody has to be woken for it again.
        self.urgent = false;
        self.shared.board.told();
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty
            .into_iter()
            .map(|simulation| {
                let entry = &mut self.simulations[simulation as usize];
                entry.dirty = false;
                entry.state(simulation)
            })
            .collect()
    }

    pub(super) fn counters(&self) -> Counters {
        let connections =
            self.connections.iter().filter(|connection| connection.member().is_some()).count() as u64;
        Counters {
            connections,
            handshakes_pending: self.pending as u64,
            room_wait_seconds: self.room.waited(std::time::Instant::now()).as_secs_f64(),
            samples_waiting: self.room.samples_waiting() as u64,
            slot_waiters: self.slot_waiters() as u64,
            expected_samples: self.expected_samples(),
            ..self.counters
        }
    }

    /// What has settled, and a full number of this rank's steps for each simulation that is still open.
    fn expected_samples(&self) -> Option<u64> {
        let mut expected = self.settled_steps;
        for (simulation, &open) in (0..).zip(&self.open).filter(|&(_, &open)| open > 0) {
            let steps = self.config.server_rank().steps_of(simulation).below(self.steps_per_simulation?);
            expected = expected.saturating_add(u64::from(open).saturating_mul(steps));
        }
        Some(expected)
    }

    pub(super) fn take_refusals(&mut self) -> Refusals {
        self.refusals.take()
    }

    /// Leaves the loop; connections are closed with the thread.
    pub(super) const fn close(&mut self) {
        self.closing = true;
    }
}
