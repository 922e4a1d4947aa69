//! What the control plane asks of the receiving thread; each runs in that thread, between two turns.

use super::SessionError;
use super::connection::{ConnectionId, Input, Phase, Stage};
use super::counters::{Counters, Refusals};
use super::error::Refusal;
use super::reception::Reception;
use super::state::{SimulationState, Status};
use crate::ledger::Reason;
use crate::sync::{Arc, lock};
use crate::wire::handshake::code;
use crate::wire::header::{Header, Kind};

impl Reception {
    fn check_known(&self, simulation: u32) -> Result<(), SessionError> {
        let planned = self.config.planned;
        if simulation < planned {
            return Ok(());
        }
        Err(SessionError::Simulation(format!(
            "simulation {simulation} is unknown: this study has {planned} simulations, 0 to {}",
            planned.saturating_sub(1)
        )))
    }

    /// Takes note of an attempt that is about to be submitted; it ends those before it.
    pub(super) fn register(
        &mut self,
        simulation: u32,
        attempt: u32,
        draw: u32,
        parameters: Vec<f64>,
    ) -> Result<(), SessionError> {
        self.check_known(simulation)?;
        let entry = &self.simulations[simulation as usize];
        let problem = if parameters.len() != self.config.nb_parameters {
            Some(format!(
                "{} parameters came, and study_options.nb_parameters is {}",
                parameters.len(),
                self.config.nb_parameters
            ))
        } else if self.stopped {
            Some("the study is being stopped".to_owned())
        } else if entry.status.is_final() {
            Some(format!("it is {} already", entry.status))
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
        if entry.run.is_some() {
            let text = format!("attempt {attempt} of simulation {simulation} takes the place of this one");
            self.break_attempt(simulation, None, &text, &Refusal::new(code::ATTEMPT, text.clone()));
        }
        if draw > old_draw {
            lock(&self.ledger).drop_incomplete(simulation, old_draw, Reason::ClientFailed);
        }
        let entry = &mut self.simulations[simulation as usize];
        if draw > old_draw {
            self.settled_steps += entry.steps;
            entry.steps = 0;
        }
        (entry.attempt, entry.draw, entry.parameters) = (attempt, draw, Arc::from(parameters));
        entry.host.clear();
        entry.error.clear();
        entry.status = Status::Planned;
        self.changed(simulation, true);
        Ok(())
    }

    /// The registered attempt is dead: its connections are closed and it may not come again.
    pub(super) fn abandon_attempt(&mut self, simulation: u32) -> Result<(), SessionError> {
        self.check_known(simulation)?;
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
        self.check_known(simulation)?;
        if reason == Reason::Untrained {
            return Err(SessionError::Simulation(format!(
                "simulation {simulation} cannot be given up as \"{reason}\": that is the end of samples, not of simulations"
            )));
        }
        let entry = &self.simulations[simulation as usize];
        if entry.status.is_final() {
            return Ok(());
        }
        let draw = entry.draw;
        let text =
            format!("simulation {simulation} was given up ({reason}): nothing of it is wanted any more");
        let connections = self.end_run(simulation);
        lock(&self.ledger).drop_incomplete(simulation, draw, reason);
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
        for simulation in 0..self.config.planned {
            let entry = &mut self.simulations[simulation as usize];
            if entry.status.is_final() {
                continue;
            }
            lock(&self.ledger).drop_incomplete(simulation, entry.draw, Reason::StoppedEarly);
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
        let told = self.simulations[simulation as usize]
            .run
            .as_ref()
            .and_then(|run| run.ranks.get(&rank))
            .is_none_or(|rank| rank.acknowledged);
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

    /// What has settled, and a full number of steps for each simulation that is still open.
    fn expected_samples(&self) -> Option<u64> {
        let open = u64::from(self.config.planned - self.nb_final);
        if open == 0 {
            return Some(self.settled_steps);
        }
        self.steps_per_simulation.map(|steps| self.settled_steps.saturating_add(open.saturating_mul(steps)))
    }

    pub(super) fn take_refusals(&mut self) -> Refusals {
        self.refusals.take()
    }

    /// Leaves the loop; connections are closed with the thread.
    pub(super) const fn close(&mut self) {
        self.closing = true;
    }
}
