//! One connection's turn: bytes become headers, control frames, and bodies in slots.

use super::connection::{Came, Connection, ConnectionId, Input, Phase, Place, Stage, Wait};
use super::error::Refusal;
use super::reception::Reception;
use super::state::Status;
use crate::buffer::SampleKey;
use crate::ledger::LedgerError;
use crate::sync::{Arc, lock};
use crate::wire::handshake::code;
use crate::wire::header::{FLAG_PAYLOAD_CRC, HEADER_SIZE, Header, Kind, MAGIC};
use std::io;

/// Bytes that one connection may bring in one turn before the others have theirs: a large sample takes several.
const TURN_BYTES: usize = 2 << 20;

/// What one step of a turn came to.
enum Advance {
    /// There may be more to do.
    More(usize),
    /// The rank's part of a time step is in: others have their turn.
    Sample,
    /// Nothing more now.
    Idle,
}

impl Reception {
    /// Lets one connection bring at most one sample, or [`TURN_BYTES`] of one.
    pub(super) fn turn(&mut self, id: ConnectionId) {
        match self.connections.get_mut(id) {
            Some(connection) => connection.queued = false,
            None => return,
        }
        self.turns += 1;
        let mut left = TURN_BYTES;
        while left > 0 && self.connections.get(id).is_some_and(Connection::has_work) {
            match self.advance(id) {
                Ok(Advance::More(bytes)) => left = left.saturating_sub(bytes),
                Ok(Advance::Sample) => break,
                Ok(Advance::Idle) => return,
                Err(refusal) => {
                    self.refuse(id, &refusal);
                    break;
                }
            }
        }
        self.enqueue(id);
    }

    /// The field's place in the slot for which the next frame is meant, when that is known before it comes: of a solver
    /// with one rank and one field, while there is a slot.
    fn expected_place(&mut self, id: ConnectionId) -> Option<(u32, Place)> {
        let connection = self.connections.get(id)?;
        if connection.header_have > 0 || !matches!(connection.input, Input::Header) {
            return None;
        }
        let member = connection.member()?;
        let Phase::Streaming(shares) = &member.phase else { return None };
        let &[share] = shares.as_slice() else { return None };
        let simulation = member.simulation;
        let size = share.dtype.size();
        let place = Place { field: 0, start: share.offset as usize * size, len: share.count as usize * size };
        let run = self.simulations[simulation as usize].run.as_ref()?;
        if run.has_several_ranks() || place.len == 0 || !self.gets_steps_of(simulation) {
            return None;
        }
        // Nobody knows yet that there is something to read: this is no reason to stand in the row for a slot.
        self.give_spare_slot(simulation);
        Some((simulation, place))
    }

    /// Reads a whole frame of which the place is known; `None` when it is not.
    fn read_expected(&mut self, id: ConnectionId) -> Option<Result<Advance, Refusal>> {
        let (simulation, place) = self.expected_place(id)?;
        let run = self.simulations[simulation as usize].run.as_mut()?;
        let slot = run.assembly.as_mut()?.slot_mut()?;
        let connection = self.connections.get_mut(id)?;
        let body = &mut slot.field_bytes_mut(place.field)[place.start..place.start + place.len];
        let result = connection.read_frame(body);
        let Ok((Came::Bytes(bytes), Some(header))) = result else {
            // Nobody knows when the rest comes: until then the slot is for others.
            let came = result.map(|(came, _)| came);
            if connection.header_may_be_ours() {
                self.take_slot_back(simulation);
                return Some(self.after_read(id, came));
            }
            let text = not_ours(connection);
            return Some(Err(Refusal::new(code::FRAME, text)));
        };
        connection.heard = self.now;
        if !header.starts_with(&MAGIC) {
            (connection.header, connection.header_have) = (header, HEADER_SIZE);
            return Some(Err(Refusal::new(code::FRAME, not_ours(connection))));
        }
        let header = match Header::parse(&header) {
            Ok(header) => header,
            Err(error) => return Some(Err(Refusal::new(code::FRAME, error.to_string()))),
        };
        let advance = self.on_header(id, header);
        let connection = self.connections.get(id)?;
        if !matches!(connection.input, Input::Body { .. }) {
            // It was no data, or nothing that is wanted.
            self.take_slot_back(simulation);
        }
        Some(advance.map(|advance| match advance {
            Advance::More(_) => Advance::More(bytes),
            other => other,
        }))
    }

    fn advance(&mut self, id: ConnectionId) -> Result<Advance, Refusal> {
        if let Some(advance) = self.read_expected(id) {
            return advance;
        }
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Advance::Idle) };
        let came = match &mut connection.input {
            Input::Header if connection.header_have < HEADER_SIZE => {
                let came = connection.read_header();
                if !connection.header_may_be_ours() {
                    let text = not_ours(connection);
                    if connection.authenticated {
                        return Err(Refusal::new(code::FRAME, text));
                    }
                    // Nobody who would read an answer.
                    self.hang_up(id, &text);
                    return Ok(Advance::Idle);
                }
                came
            }
            Input::Header => {
                let header = Header::parse(&connection.header)
                    .map_err(|error| Refusal::new(code::FRAME, error.to_string()))?;
                connection.header_have = 0;
                return self.on_header(id, header);
            }
            Input::Placing(header) => {
                let header = *header;
                return self.place(id, header);
            }
            &mut Input::Control { header, ref payload } => {
                let left = header.payload_len() - payload.len();
                if left == 0 {
                    return self.on_control(id);
                }
                let window = left.min(self.scratch.len());
                let came = connection.read_bytes(&mut self.scratch[..window]);
                if let (Ok(Came::Bytes(bytes)), Input::Control { payload, .. }) =
                    (&came, &mut connection.input)
                {
                    payload.extend_from_slice(&self.scratch[..*bytes]);
                }
                came
            }
            &mut Input::Body { place, have, .. } => {
                if have == place.len {
                    return self.on_body(id);
                }
                let slot = match &connection.stage {
                    Stage::Member(member) => self.simulations[member.simulation as usize]
                        .run
                        .as_mut()
                        .and_then(|run| run.assembly.as_mut())
                        .and_then(|assembly| assembly.slot_mut()),
                    _ => None,
                };
                let Some(slot) = slot else {
                    return Err(Refusal::new(code::PROTOCOL, "its time step is no longer under assembly"));
                };
                let body = &mut slot.field_bytes_mut(place.field)[place.start..place.start + place.len];
                let came = connection.read_body(&mut body[have..]);
                if let (Ok(Came::Bytes(bytes)), Input::Body { have, .. }) = (&came, &mut connection.input) {
                    *have += bytes;
                }
                came
            }
            Input::Discard { left: 0 } => {
                connection.input = Input::Header;
                return Ok(Advance::More(0));
            }
            Input::Discard { left } => {
                let window = usize::try_from(*left).unwrap_or(usize::MAX).min(self.scratch.len());
                let came = connection.read_bytes(&mut self.scratch[..window]);
                if let (Ok(Came::Bytes(bytes)), Input::Discard { left }) = (&came, &mut connection.input)
                    && *left != u64::MAX
                {
                    *left -= *bytes as u64;
                    self.counters.bytes_discarded += *bytes as u64;
                }
                came
            }
        };
        self.after_read(id, came)
    }

    /// What a read that only brought bytes, or none, comes to.
    fn after_read(&mut self, id: ConnectionId, came: io::Result<Came>) -> Result<Advance, Refusal> {
        match came {
            Ok(Came::Bytes(bytes)) => {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.heard = self.now;
                }
                Ok(Advance::More(bytes))
            }
            Ok(Came::Dry) => Ok(Advance::Idle),
            Ok(Came::End) => {
                self.ended(id, None);
                Ok(Advance::Idle)
            }
            Err(error) => {
                self.ended(id, Some(&error));
                Ok(Advance::Idle)
            }
        }
    }

    /// The peer closed the connection, or it broke.
    fn ended(&mut self, id: ConnectionId, error: Option<&io::Error>) {
        let Some(connection) = self.connections.get(id) else { return };
        let who = connection.describe();
        let how = match error {
            Some(error) => format!("lost its connection ({error})"),
            None => "closed its connection".to_owned(),
        };
        let torn = connection.torn_frame();
        let bytes = connection.bytes_received;
        match &connection.stage {
            Stage::Lingering => {}
            Stage::Unknown | Stage::Challenged { .. } => {
                return self
                    .hang_up(id, &format!("it {how} after {bytes} bytes, without proving the study key"));
            }
            Stage::Member(member) => {
                let (simulation, rank) = (member.simulation, member.rank);
                match member.phase {
                    Phase::Finalized | Phase::Stopped => self.lost(id, simulation, rank, &who),
                    _ => {
                        let steps = self.simulations[simulation as usize].steps;
                        let text = match &torn {
                            Some(torn) => format!("{who} {how} in the middle of a frame, after {torn}"),
                            None => {
                                format!("{who} {how} before it finalized, after {steps} complete time steps")
                            }
                        };
                        if torn.is_some() {
                            self.counters.connections_refused += 1;
                            self.refusals.push(text.clone(), self.now);
                        } else {
                            log::warn!("{text}");
                        }
                        self.lost(id, simulation, rank, &text);
                    }
                }
            }
        }
        self.remove(id);
    }

    /// A header has come; its bytes kept every rule of the format.
    fn on_header(&mut self, id: ConnectionId, header: Header) -> Result<Advance, Refusal> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Advance::Idle) };
        let kind = header.kind;
        if kind != Kind::Data && connection.early > 0 {
            return Err(Refusal::new(
                code::PROTOCOL,
                format!("nothing was expected after {kind}, and more came"),
            ));
        }
        let expected = match &connection.stage {
            Stage::Unknown => "Hello",
            Stage::Challenged { .. } => "Proof",
            Stage::Lingering => "nothing",
            Stage::Member(member) => match member.phase {
                Phase::Accepted => "Join",
                Phase::Joining => "nothing until Welcome was sent",
                Phase::Streaming(_) => "Data or Finalize",
                Phase::Finalized => "nothing after Finalize",
                Phase::Stopped => "Data or Finalize",
            },
        };
        let phase = connection.member().map(|member| &member.phase);
        match (kind, &connection.stage, phase) {
            (Kind::Hello, Stage::Unknown, _)
            | (Kind::Proof, Stage::Challenged { .. }, _)
            | (Kind::Join, _, Some(Phase::Accepted)) => {
                connection.input = Input::Control { header, payload: Vec::new() };
                Ok(Advance::More(0))
            }
            (Kind::Data, _, Some(Phase::Streaming(_))) => {
                self.check_data(id, &header)?;
                self.place(id, header)
            }
            (Kind::Finalize, _, Some(Phase::Accepted | Phase::Streaming(_))) => {
                check_sender(connection, &header)?;
                self.check_finalize(id, &header)?;
                self.on_finalize(id, &header);
                Ok(Advance::More(0))
            }
            (Kind::Data, _, Some(Phase::Stopped)) => {
                check_sender(connection, &header)?;
                connection.input = Input::Discard { left: header.payload_length };
                self.count_stopped(id, &header);
                Ok(Advance::More(0))
            }
            // It was sent before the rank could know that the study stops.
            (Kind::Join, _, Some(Phase::Stopped)) => {
                connection.input = Input::Discard { left: header.payload_length };
                Ok(Advance::More(0))
            }
            // Answered once: the answers to a peer that reads none must not pile up.
            (Kind::Finalize, _, Some(Phase::Stopped)) => {
                check_sender(connection, &header)?;
                if let Some(member) = connection.member_mut() {
                    member.phase = Phase::Finalized;
                }
                self.send(id, &Header::control(Kind::FinalizeAck, 0).encode());
                Ok(Advance::More(0))
            }
            _ => Err(Refusal::new(code::PROTOCOL, format!("{expected} was expected, and {kind} came"))),
        }
    }

    /// A control frame is complete.
    fn on_control(&mut self, id: ConnectionId) -> Result<Advance, Refusal> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Advance::Idle) };
        let Input::Control { header, payload } = std::mem::replace(&mut connection.input, Input::Header)
        else {
            return Ok(Advance::Idle);
        };
        match header.kind {
            Kind::Hello => self.on_hello(id, &payload)?,
            Kind::Proof => self.on_proof(id, &payload)?,
            _ => self.on_join(id, &payload)?,
        }
        Ok(Advance::More(0))
    }

    /// Compares a data header with what the rank has declared and the study knows.
    fn check_data(&self, id: ConnectionId, header: &Header) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get(id) else { return Ok(()) };
        check_sender(connection, header)?;
        let Some(Phase::Streaming(shares)) = connection.member().map(|member| &member.phase) else {
            return Ok(());
        };
        let Some(share) = shares.get(header.field as usize) else {
            return Err(Refusal::new(
                code::FIELD,
                format!("field index {} came, and this study has {} fields", header.field, shares.len()),
            ));
        };
        let name = &self.config.field_names[header.field as usize];
        if header.dtype != Some(share.dtype) {
            return Err(Refusal::new(
                code::DTYPE,
                format!(
                    "field \"{name}\" was asked for as {}, and {} came",
                    share.dtype,
                    header.dtype.map_or("no dtype", |dtype| dtype.name())
                ),
            ));
        }
        if (header.element_offset, header.element_count) != (share.offset, share.count) {
            return Err(Refusal::new(
                code::SIZE,
                format!(
                    "this rank's share of field \"{name}\" is {} elements from element {} on, and {} from element {} \
                     on came",
                    share.count, share.offset, header.element_count, header.element_offset
                ),
            ));
        }
        if self.config.payload_crc && header.flags & FLAG_PAYLOAD_CRC == 0 {
            return Err(Refusal::new(
                code::FRAME,
                format!("field \"{name}\" came without the checksum of its payload that Welcome asks for"),
            ));
        }
        if let Some(nb_time_steps) = self.config.nb_time_steps
            && header.time_step >= nb_time_steps
        {
            return Err(beyond_end(LedgerError::BeyondEnd { time_step: header.time_step, nb_time_steps }));
        }
        if !self.steps_of(header.simulation).contains(header.time_step) {
            let ledger = lock(self.shared.ledger_of(header.simulation));
            ledger.number_of(header.simulation, header.time_step).map_err(beyond_end)?;
        }
        Ok(())
    }

    /// A rank finalizes no more time steps than it has sent or skipped: its word for their number would stand for
    /// the whole study.
    fn check_finalize(&self, id: ConnectionId, header: &Header) -> Result<(), Refusal> {
        let Some(member) = self.connections.get(id).and_then(|connection| connection.member()) else {
            return Ok(());
        };
        let entry = &self.simulations[member.simulation as usize];
        let came = match entry.run.as_ref().and_then(|run| run.assembly.as_ref()) {
            None => 0,
            Some(assembly) if assembly.has_all_of(member.rank as usize) => {
                let ledger = lock(self.shared.ledger_of(member.simulation));
                ledger.next_incomplete(member.simulation, entry.draw, assembly.step() + 1)
            }
            Some(assembly) => assembly.step(),
        };
        if header.time_step > came {
            return Err(Refusal::new(
                code::STEP,
                format!(
                    "Finalize says that this rank has sent or skipped {} time steps, and {came} of them came",
                    header.time_step
                ),
            ));
        }
        Ok(())
    }

    /// Finds the place of a valid data frame: in the slot of the lowest incomplete step, in the scratch when it was
    /// there already, or later.
    fn place(&mut self, id: ConnectionId, header: Header) -> Result<Advance, Refusal> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Advance::Idle) };
        let early = std::mem::take(&mut connection.early);
        let Stage::Member(member) = &mut connection.stage else { return Ok(Advance::Idle) };
        let (simulation, rank, field) = (member.simulation, member.rank as usize, header.field as usize);
        let entry = &mut self.simulations[simulation as usize];
        let Some(assembly) = entry.run.as_mut().and_then(|run| run.assembly.as_mut()) else {
            return Ok(Advance::Idle);
        };
        let key = SampleKey { simulation, draw: entry.draw, time_step: header.time_step };
        let step = assembly.step();
        if header.time_step == step && !assembly.has(rank, field) {
            if assembly.declare() {
                lock(self.shared.ledger_of(simulation)).declare(key).map_err(beyond_end)?;
            }
            if !assembly.has_slot() {
                connection.input = Input::Placing(header);
                self.request_slot(simulation);
                let entry = &self.simulations[simulation as usize];
                let assembly = entry.run.as_ref().and_then(|run| run.assembly.as_ref());
                if !assembly.is_some_and(|assembly| assembly.has_slot()) {
                    self.hold(id, Wait::Slot);
                    return Ok(Advance::Idle);
                }
            }
            let Some(connection) = self.connections.get_mut(id) else { return Ok(Advance::Idle) };
            let size = header.dtype.map_or(0, |dtype| dtype.size());
            let start = header.element_offset as usize * size;
            let place = Place { field, start, len: header.payload_len() };
            connection.input = Input::Body { header, place, have: early };
            return Ok(Advance::More(0));
        }
        let (known, next) = {
            let ledger = lock(self.shared.ledger_of(simulation));
            let next = ledger.next_incomplete(simulation, key.draw, step + 1);
            (header.time_step == step || ledger.is_complete(key), next)
        };
        if known {
            lock(self.shared.ledger_of(simulation)).refuse_duplicate();
            self.counters.duplicates_refused += 1;
            self.counters.bytes_discarded += early as u64;
            connection.input = Input::Discard { left: header.payload_length - early as u64 };
            if let Some(member) = connection.member_mut()
                && !std::mem::replace(&mut member.duplicate_told, true)
            {
                let name = &self.config.field_names[field];
                let text = format!(
                    "{}: field \"{name}\" of time step {} came again and was thrown away; further ones are only counted",
                    connection.describe(),
                    header.time_step
                );
                self.refusals.push(text, self.now);
            }
            return Ok(Advance::More(0));
        }
        if header.time_step == next && assembly.has_all_of(rank) {
            if let Some(text) = entry.run.as_ref().and_then(|run| run.never_whole(simulation)) {
                return Err(Refusal::new(code::STEP, text));
            }
            connection.input = Input::Placing(header);
            self.hold(id, Wait::Step);
            return Ok(Advance::Idle);
        }
        let names = &self.config.field_names;
        let text = match assembly.missing_field(rank) {
            Some(missing) => format!(
                "time steps are sent in order, each with every field: field \"{}\" of time step {step} was expected, and \
                 field \"{}\" of time step {} came",
                names[missing], names[field], header.time_step
            ),
            None => format!(
                "time steps are sent in order: time step {next} was expected, and {} came",
                header.time_step
            ),
        };
        Err(Refusal::new(code::STEP, text))
    }

    /// A body is complete in its slot.
    fn on_body(&mut self, id: ConnectionId) -> Result<Advance, Refusal> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(Advance::Idle) };
        let &Input::Body { header, place, .. } = &connection.input else { return Ok(Advance::Idle) };
        let Some(member) = connection.member() else { return Ok(Advance::Idle) };
        let (simulation, rank) = (member.simulation, member.rank as usize);
        let run = self.simulations[simulation as usize].run.as_mut();
        let Some(assembly) = run.and_then(|run| run.assembly.as_mut()) else { return Ok(Advance::Idle) };
        if header.flags & FLAG_PAYLOAD_CRC != 0
            && let Some(slot) = assembly.slot_mut()
        {
            let body = &slot.field_bytes_mut(place.field)[place.start..place.start + place.len];
            let computed = crc32c::crc32c(body);
            if computed != header.payload_crc {
                return Err(Refusal::new(
                    code::FRAME,
                    format!(
                        "the payload of field \"{}\" of time step {} was damaged: its checksum is {:#010x}, and its bytes \
                         give {computed:#010x}",
                        self.config.field_names[place.field], header.time_step, header.payload_crc
                    ),
                ));
            }
        }
        connection.input = Input::Header;
        self.counters.bytes_received += place.len as u64;
        assembly.arrive(rank, place.field);
        let rank_done = assembly.has_all_of(rank);
        let complete = assembly.is_complete();
        if self.simulations[simulation as usize].status == Status::Silent {
            self.simulations[simulation as usize].error.clear();
            self.set_status(simulation, Status::Running);
        }
        if complete {
            self.step_complete(simulation);
        }
        Ok(if rank_done { Advance::Sample } else { Advance::More(place.len) })
    }

    /// The lowest incomplete step of a simulation is complete: it goes to the training buffer.
    fn step_complete(&mut self, simulation: u32) {
        let entry = &mut self.simulations[simulation as usize];
        let Some(assembly) = entry.run.as_mut().and_then(|run| run.assembly.as_mut()) else { return };
        let step = assembly.step();
        let key = SampleKey { simulation, draw: entry.draw, time_step: step };
        let (counted, next) = {
            let mut ledger = lock(self.shared.ledger_of(simulation));
            let counted = ledger.complete(key);
            (counted, ledger.next_incomplete(simulation, key.draw, step + 1))
        };
        let slot = assembly.take_complete(next);
        let parameters = Arc::clone(&entry.parameters);
        entry.steps += u64::from(counted);
        let for_validation = self.is_for_validation(simulation);
        if for_validation {
            self.counters.validation_received += u64::from(counted);
        } else {
            self.counters.samples_received += u64::from(counted);
        }
        self.changed(simulation, false);
        match slot {
            Some(slot) if counted && for_validation => self.keep_for_validation(slot, key, &parameters),
            Some(slot) if counted => self.publish(slot, key, parameters),
            // The ledger was closed before reception ended: the study is over for its owner.
            _ => self.let_go_of_slot(simulation),
        }
        self.resume_ranks(simulation, Wait::Step);
        self.acknowledge(simulation);
    }

    /// Counts a time step that came after the study was stopped.
    pub(super) fn count_stopped(&mut self, id: ConnectionId, header: &Header) {
        let Some(member) = self.connections.get(id).and_then(|connection| connection.member()) else {
            return;
        };
        let key = SampleKey { simulation: member.simulation, draw: member.draw, time_step: header.time_step };
        let mut ledger = lock(self.shared.ledger_of(member.simulation));
        // Nobody puts these steps together, so that nothing else keeps their order; a peer that leaps would have the
        // ledger grow by more than it sends.
        if key.time_step > ledger.declared_end(key.simulation, key.draw) {
            return;
        }
        // Steps out of range and a closed ledger: nothing of them is to be counted.
        if let Err(error) = ledger.declare(key) {
            log::debug!("a time step that came after the stop is not counted: {error}");
        }
    }
}

/// Data and Finalize name the simulation and the rank that the handshake proved.
fn check_sender(connection: &Connection, header: &Header) -> Result<(), Refusal> {
    match connection.member() {
        Some(member) if (header.simulation, header.client_rank) != (member.simulation, member.rank) => {
            Err(Refusal::new(
                code::PROTOCOL,
                format!(
                    "this is the connection of rank {} of simulation {}, and a {} frame of rank {} of simulation {} came",
                    member.rank, member.simulation, header.kind, header.client_rank, header.simulation
                ),
            ))
        }
        _ => Ok(()),
    }
}

fn beyond_end(error: LedgerError) -> Refusal {
    match error {
        LedgerError::Closed => Refusal::new(code::STOPPED, error.to_string()),
        _ => Refusal::new(code::STEP, error.to_string()),
    }
}

fn not_ours(connection: &Connection) -> String {
    let start = &connection.header[..connection.header_have.min(16)];
    format!(
        "a frame starts with \"MLSA\", and \"{}\" came: the peer speaks something else",
        start.escape_ascii()
    )
}
