//! The life of an admitted rank: join, welcome, finalize, and how an attempt ends before its time.

use super::assembly::Assembly;
use super::connection::{ConnectionId, Input, Phase, Share, Stage, Wait};
use super::error::Refusal;
use super::join::{Declared, Layout, in_order, lay_out};
use super::reception::Reception;
use super::state::Status;
use crate::error::{BufferError, describe};
use crate::ledger::Reason;
use crate::planted::{Bug, planted};
use crate::schema::Schema;
use crate::sync::{Arc, lock};
use crate::wire::handshake::{FieldLayout, Join, Refused, Welcome, code, encode_frame, parse};
use crate::wire::header::{Header, Kind};
use std::time::Duration;

/// How long a refused peer may take to read why.
const FAREWELL: Duration = Duration::from_secs(2);

impl Reception {
    /// `Join`: the rank's fields; the answer comes when all ranks have joined.
    pub(super) fn on_join(&mut self, id: ConnectionId, payload: &[u8]) -> Result<(), Refusal> {
        let join: Join = parse(payload).map_err(|error| Refusal::new(code::PROTOCOL, error.to_string()))?;
        let fields = in_order(&join, &self.config.field_names)?;
        let Some(member) = self.connections.get_mut(id).and_then(|connection| connection.member_mut()) else {
            return Ok(());
        };
        member.phase = Phase::Joining;
        let (simulation, rank) = (member.simulation, member.rank);
        let Some(run) = &mut self.simulations[simulation as usize].run else { return Ok(()) };
        if let Some(rank) = run.ranks.get_mut(&rank) {
            rank.fields = Some(fields);
        }
        if run.all_joined() {
            self.welcome(simulation);
        } else {
            self.check_all_can_join(simulation);
        }
        Ok(())
    }

    /// A rank that has finalized without a send keeps those that have joined waiting for ever.
    fn check_all_can_join(&mut self, simulation: u32) {
        let Some(run) = &self.simulations[simulation as usize].run else { return };
        if run.nb_finalized == 0 || run.assembly.is_some() {
            return;
        }
        let find = |finalized: bool| {
            let mut ranks = run.ranks.iter();
            ranks.find(|(_, rank)| rank.sent.is_some() == finalized && rank.fields.is_some() != finalized)
        };
        if let (Some((&done, _)), Some((&waiting, _))) = (find(true), find(false)) {
            let text = format!(
                "simulation {simulation}: rank {done} has finalized without sending a time step, and rank {waiting} \
                 sends: every rank sends its share of every field"
            );
            self.break_attempt(simulation, None, &text, &Refusal::new(code::STEP, text.clone()));
        }
    }

    /// A rank that runs ahead waits for the step under assembly, which another has just ended without.
    fn check_none_waits_in_vain(&mut self, simulation: u32) {
        let Some(run) = &self.simulations[simulation as usize].run else { return };
        let waits = |id: ConnectionId| {
            let member = self.connections.get(id).and_then(|connection| connection.member());
            member.is_some_and(|member| member.wait == Some(Wait::Step))
        };
        if let Some(text) = run.never_whole(simulation)
            && run.connections().into_iter().any(waits)
        {
            self.break_attempt(simulation, None, &text, &Refusal::new(code::STEP, text.clone()));
        }
    }

    /// All ranks have joined: fixes where their shares belong, and lets data come.
    pub(super) fn welcome(&mut self, simulation: u32) {
        let layout = match self.layout(simulation) {
            Ok(Some(layout)) => layout,
            Ok(None) => return,
            Err(refusal) => {
                let text =
                    format!("simulation {simulation} cannot join: {} [{}]", refusal.message, refusal.code);
                let run = self.simulations[simulation as usize].run.as_ref();
                self.counters.connections_refused += run.map_or(0, |run| run.connections().len() as u64);
                self.refusals.push(text.clone(), self.now);
                return self.break_attempt(simulation, None, &text, &refusal);
            }
        };
        let entry = &self.simulations[simulation as usize];
        let draw = entry.draw;
        let several = entry.run.as_ref().is_some_and(|run| run.has_several_ranks());
        // Whoever sends nothing here holds nothing here.
        if several && self.gets_steps_of(simulation) && !self.promise(simulation) {
            return;
        }
        let (step, complete) = {
            let ledger = lock(self.shared.ledger_of(simulation));
            (ledger.next_incomplete(simulation, draw, 0), ledger.complete_ranges(simulation, draw))
        };
        let distribution = self.distribution_of(simulation);
        let Some(run) = &mut self.simulations[simulation as usize].run else { return };
        run.assembly = Some(Assembly::new(run.ranks.len(), layout.fields.len(), step));
        let members: Vec<(usize, ConnectionId, Vec<Declared>)> = run
            .ranks
            .iter()
            .filter_map(|(&rank, entry)| Some((rank as usize, entry.connection?, entry.fields.clone()?)))
            .collect();
        for (rank, id, declared) in members {
            let shares = layout.fields.iter().zip(&layout.offsets[rank]).zip(&declared);
            let shares = shares
                .map(|((field, &offset), declared)| Share {
                    dtype: field.dtype,
                    offset,
                    count: declared.size,
                })
                .collect();
            let fields = layout.fields.iter().zip(&layout.offsets[rank]).zip(0..);
            let welcome = Welcome {
                fields: fields
                    .map(|((field, &offset), index)| FieldLayout {
                        name: field.name.clone(),
                        index,
                        dtype: field.dtype,
                        size: field.size as u64,
                        offset,
                    })
                    .collect(),
                servers: self.servers.clone(),
                distribution: distribution.name().into(),
                complete: complete.clone(),
                payload_crc: self.config.payload_crc,
            };
            if let Some(connection) = self.connections.get_mut(id) {
                connection.heard = self.now;
                if let Some(member) = connection.member_mut() {
                    member.phase = Phase::Streaming(shares);
                }
            }
            self.send(id, &encode_frame(Kind::Welcome, &welcome));
        }
        if let Some(timeout) = self.config.simulation_timeout {
            self.look_by(self.now + timeout);
        }
        self.set_status(simulation, Status::Running);
    }

    /// Where the ranks' shares belong; the first simulation that gets here fixes the schema. `None` when the
    /// simulation is gone, or the study with it.
    fn layout(&mut self, simulation: u32) -> Result<Option<Layout>, Refusal> {
        let Some(run) = &self.simulations[simulation as usize].run else { return Ok(None) };
        let shares: Vec<&[Declared]> = run.ranks.values().filter_map(|rank| rank.fields.as_deref()).collect();
        let names = &self.config.field_names;
        let known = self.schema.clone().or_else(|| {
            // Bound by a put from Python; with other fields, binding below says so.
            let bound = self.buffer.schema()?;
            bound.fields().iter().map(|field| &field.name).eq(names).then_some(bound)
        });
        let layout = lay_out(&shares, names, self.config.data_type, known.as_deref())?;
        if self.schema.is_none() {
            let schema = Schema::new(layout.fields.clone(), self.config.nb_parameters)
                .map_err(|error| Refusal::new(code::SIZE, error.to_string()))?;
            let schema = Arc::new(schema);
            let fits = self.check_validation_fits(&schema);
            if let Err(error) = fits.and_then(|()| self.buffer.bind(Arc::clone(&schema))) {
                let text = format!(
                    "simulation {simulation} has joined first, and its samples cannot be kept: {error}"
                );
                self.fatal = Some(text);
                let code = match error {
                    BufferError::Memory { .. }
                    | BufferError::ValidationMemory { .. }
                    | BufferError::Map { .. } => code::MEMORY,
                    _ => code::FIELD,
                };
                return Err(Refusal::new(code, error.to_string()));
            }
            let slots = self.buffer.slot_counts().total();
            log::info!(
                "samples hold {}; {slots} slots of {} bytes take {:.1} MiB",
                describe(&schema),
                schema.stride(),
                slots as f64 * schema.stride() as f64 / f64::from(1 << 20)
            );
            self.schema = Some(schema);
        }
        Ok(Some(layout))
    }

    /// `Finalize`: the rank has sent all of its time steps.
    pub(super) fn on_finalize(&mut self, id: ConnectionId, header: &Header) {
        let Some(member) = self.connections.get_mut(id).and_then(|connection| connection.member_mut()) else {
            return;
        };
        member.phase = Phase::Finalized;
        let (simulation, rank) = (member.simulation, member.rank);
        let Some(run) = &mut self.simulations[simulation as usize].run else { return };
        if let Some(rank) = run.ranks.get_mut(&rank) {
            rank.sent = Some(header.time_step);
            run.nb_finalized += 1;
        }
        self.check_all_can_join(simulation);
        self.check_none_waits_in_vain(simulation);
        self.acknowledge(simulation);
    }

    /// Tells the ranks that have finalized when all that they sent is complete in memory; when all ranks have
    /// finalized, nothing more can become complete, and the simulation is finished.
    pub(super) fn acknowledge(&mut self, simulation: u32) {
        let entry = &mut self.simulations[simulation as usize];
        let Some(run) = entry.run.as_mut().filter(|run| run.nb_finalized > 0) else { return };
        let all = run.all_finalized();
        let incomplete = run.assembly.as_ref().map_or(0, Assembly::step);
        let mut told = Vec::new();
        for rank in run.ranks.values_mut() {
            if !rank.acknowledged && rank.sent.is_some_and(|sent| all || sent <= incomplete) {
                rank.acknowledged = true;
                told.extend(rank.connection);
            }
        }
        if all {
            self.finished(simulation);
        }
        let frame = Header::control(Kind::FinalizeAck, 0).encode();
        for id in told {
            self.send(id, &frame);
        }
    }

    /// All ranks have finalized.
    fn finished(&mut self, simulation: u32) {
        let entry = &mut self.simulations[simulation as usize];
        let Some(run) = &entry.run else { return };
        let sent: Vec<u64> = run.ranks.values().filter_map(|rank| rank.sent).collect();
        let (least, most) = (sent.iter().min().copied(), sent.iter().max().copied());
        let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
        let (draw, steps) = (entry.draw, entry.steps);
        let torn = lock(self.shared.ledger_of(simulation)).nb_incomplete(simulation, draw);
        let own = self.steps_of(simulation);
        let here = if self.config.nb_ranks == 1 { "" } else { " that belong to this server rank" };
        let mut problems = Vec::new();
        if least != most {
            let rank = |count| sent.iter().position(|&sent| sent == count).unwrap_or(0);
            problems.push(format!(
                "its rank {} has sent {most} time steps and its rank {} {least}",
                rank(most),
                rank(least)
            ));
        }
        if let Some(expected) = self.config.nb_time_steps
            && most != expected
        {
            problems.push(format!(
                "it has sent {most} time steps, and study_options.nb_time_steps is {expected}"
            ));
        } else if steps != own.below(most) {
            problems.push(format!(
                "it says that it has sent {} time steps{here}, and {steps} are complete",
                own.below(most)
            ));
        }
        if torn > 0 {
            problems.push(format!("{torn} time steps that came in part only were dropped"));
        }
        if !problems.is_empty() {
            let text = format!("simulation {simulation}: {}", problems.join("; "));
            log::warn!("{text}");
            self.simulations[simulation as usize].error = text;
        }
        // Where no step of it belongs to this rank, nobody could compare its word for their number with anything.
        if self.gets_steps_of(simulation) {
            self.steps_per_simulation.get_or_insert(most);
        }
        log::debug!("simulation {simulation} has finalized with {steps} complete time steps");
        if self.config.nb_ranks == 1 || self.is_for_validation(simulation) || planted(Bug::FinalUnconfirmed) {
            self.close_finished(simulation);
        } else {
            // Another server rank may lack time steps of it: then it runs again.
            self.end_run(simulation);
            self.set_status(simulation, Status::Finished);
        }
    }

    /// Makes a finished simulation final: what is incomplete of it will never be complete.
    pub(super) fn close_finished(&mut self, simulation: u32) {
        let draw = self.simulations[simulation as usize].draw;
        let mut ledger = lock(self.shared.ledger_of(simulation));
        ledger.drop_incomplete(simulation, draw, Reason::ClientFailed);
        drop(ledger);
        self.settle(simulation, Status::Finished);
    }

    /// Makes a simulation final.
    pub(super) fn settle(&mut self, simulation: u32, status: Status) {
        self.end_run(simulation);
        let entry = &mut self.simulations[simulation as usize];
        entry.settled = true;
        self.nb_final += 1;
        if simulation < self.config.planned {
            self.open[(simulation % self.config.nb_ranks) as usize] -= 1;
            self.settled_steps += entry.steps;
            match status {
                Status::Finished => self.counters.simulations_finished += 1,
                _ => self.counters.simulations_dropped += 1,
            }
        }
        self.set_status(simulation, status);
        self.check_over();
    }

    /// Forgets the attempt that is connected: its slot and its promise are free. Returns its connections.
    pub(super) fn end_run(&mut self, simulation: u32) -> Vec<ConnectionId> {
        let entry = &mut self.simulations[simulation as usize];
        let Some(mut run) = entry.run.take() else { return Vec::new() };
        let gave_slot = run.assembly.as_mut().is_some_and(Assembly::drop_slot);
        if gave_slot {
            self.let_go_of_slot(simulation);
        }
        self.leave_promise_row(simulation);
        if run.promised {
            self.end_promise();
        }
        self.serve_rows();
        run.connections()
    }

    /// Ends the attempt that is connected, and refuses its connections but the one that it ended with.
    pub(super) fn break_attempt(
        &mut self,
        simulation: u32,
        culprit: Option<ConnectionId>,
        text: &str,
        refusal: &Refusal,
    ) {
        let acknowledged: Vec<ConnectionId> = self.simulations[simulation as usize]
            .run
            .iter()
            .flat_map(|run| run.ranks.values())
            .filter(|rank| rank.acknowledged)
            .filter_map(|rank| rank.connection)
            .collect();
        let connections = self.end_run(simulation);
        self.simulations[simulation as usize].error = text.to_owned();
        self.changed(simulation, true);
        self.set_status(simulation, Status::Disconnected);
        for id in connections {
            if Some(id) != culprit && !acknowledged.contains(&id) {
                self.farewell(id, refusal);
            }
        }
    }

    /// A rank's connection is over before its time: with it, the attempt.
    pub(super) fn lost(&mut self, id: ConnectionId, simulation: u32, rank: u32, text: &str) {
        let Some(run) = &mut self.simulations[simulation as usize].run else { return };
        let Some(entry) = run.ranks.get_mut(&rank).filter(|rank| rank.connection == Some(id)) else { return };
        if entry.sent.is_some() {
            // All of its time steps are here.
            entry.connection = None;
            return;
        }
        let others = format!("this attempt cannot be completed: {text}");
        self.break_attempt(simulation, Some(id), text, &Refusal::new(code::ATTEMPT, others));
    }

    /// Refuses a connection for what its peer did: tells it, counts and logs it, and ends its attempt.
    pub(super) fn refuse(&mut self, id: ConnectionId, refusal: &Refusal) {
        let Some(connection) = self.connections.get(id) else { return };
        let text = format!("{}: {} [{}]", connection.describe(), refusal.message, refusal.code);
        let member = connection.member().map(|member| (member.simulation, member.rank));
        self.counters.connections_refused += 1;
        self.refusals.push(text.clone(), self.now);
        self.farewell(id, refusal);
        if let Some((simulation, rank)) = member {
            self.lost(id, simulation, rank, &text);
        }
    }

    /// Closes the connection of a peer that has proved nothing, without a word; counts and logs it.
    pub(super) fn hang_up(&mut self, id: ConnectionId, text: &str) {
        let Some(connection) = self.connections.get(id) else { return };
        let text = format!("{}: {text}", connection.describe());
        self.counters.connections_refused += 1;
        self.refusals.push(text, self.now);
        self.remove(id);
    }

    /// Tells a peer why its connection is over, and gives it a moment to read that: closing at once while its bytes
    /// are under way would take the text from it.
    pub(super) fn farewell(&mut self, id: ConnectionId, refusal: &Refusal) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let frame = encode_frame(
            Kind::Refused,
            &Refused { code: refusal.code.into(), message: refusal.message.clone() },
        );
        connection.stage = Stage::Lingering;
        connection.input = Input::Discard { left: u64::MAX };
        connection.send(&frame);
        connection.end_output();
        let deadline = self.now + FAREWELL;
        connection.deadline = Some(deadline);
        self.flush(id);
        self.look_by(deadline);
        self.enqueue(id);
    }
}
