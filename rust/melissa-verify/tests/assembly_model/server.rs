//! What a server rank does: `session/room.rs`, `data.rs`, `member.rs` and `control.rs`, function by function and under
//! the names that they have there. Sockets, checks of frames, clocks and the log are left out.

use crate::buffer::{Key, Slot};
use crate::config::{Config, Fault, Rule};
use crate::state::{Assembly, Input, Law, Rank, Run, Server, Simulation, Status, Wait, Waiting};

/// One turn of a server rank's session.
pub struct Turn<'a> {
    pub config: &'a Config,
    /// The number of the server rank.
    pub rank: u8,
    pub server: &'a mut Server,
    /// Where a full reservoir may evict a pinned sample or another, it is the pinned one.
    pub pinned_victim: bool,
    pub broken: &'a mut Option<Law>,
}

impl Turn<'_> {
    fn fault(&self, fault: Fault) -> bool {
        self.config.fault == fault
    }

    fn break_law(&mut self, law: Law) {
        self.broken.get_or_insert(law);
    }

    fn entry(&mut self, simulation: u8) -> &mut Simulation {
        &mut self.server.simulations[usize::from(simulation)]
    }

    fn run(&mut self, simulation: u8) -> Option<&mut Run> {
        self.entry(simulation).run.as_mut()
    }

    fn size(&self, simulation: u8) -> u8 {
        self.config.sizes[usize::from(simulation)]
    }

    // room.rs

    fn publish(&mut self, slot: Slot, key: Key) {
        let simulation = key.simulation;
        let number = self.server.nb_complete;
        self.server.nb_complete += 1;
        let waiting = Waiting { slot, key, number };
        if self.server.room.complete.is_empty() && self.publish_to_buffer(&waiting) {
            return self.published(simulation);
        }
        self.entry(simulation).sample_waits = true;
        self.server.room.complete.push_back(waiting);
        if self.fault(Fault::SecondSlotBesideWaiting) {
            self.entry(simulation).sample_waits = false;
        }
    }

    fn publish_to_buffer(&mut self, waiting: &Waiting) -> bool {
        let Waiting { slot, key, .. } = *waiting;
        let published = self.server.buffer.publish(self.config, slot, key, self.pinned_victim, self.broken);
        if published {
            if self.server.nb_settled != waiting.number {
                self.break_law(Law::PublishedOutOfOrder);
            }
            self.server.nb_settled += 1;
        }
        published
    }

    pub fn serve_room(&mut self) {
        let last_first = self.fault(Fault::WaitingOutOfOrder);
        loop {
            let complete = &mut self.server.room.complete;
            let next = if last_first { complete.pop_back() } else { complete.pop_front() };
            let Some(waiting) = next else { break };
            if !self.publish_to_buffer(&waiting) {
                let complete = &mut self.server.room.complete;
                if last_first {
                    complete.push_back(waiting);
                } else {
                    complete.push_front(waiting);
                }
                break;
            }
            self.published(waiting.key.simulation);
        }
        self.check_over();
        self.serve_rows();
    }

    fn published(&mut self, simulation: u8) {
        self.let_go_of_slot(simulation);
        let forgets = self.fault(Fault::NoRequestAfterRoom);
        let entry = self.entry(simulation);
        let waits = std::mem::take(&mut entry.sample_waits);
        let somebody =
            entry.run.as_ref().is_some_and(|run| run.ranks.iter().any(|rank| rank.wait == Some(Wait::Slot)));
        if waits && somebody && !forgets {
            self.request_slot(simulation);
        }
        self.serve_rows();
    }

    fn let_go_of_slot(&mut self, simulation: u8) {
        if std::mem::take(&mut self.entry(simulation).holds_slot_of_singles) {
            self.server.room.held_by_singles -= 1;
        }
        self.taken_before_at_most();
    }

    /// Slots for simulations of one rank; `None`: any number.
    pub fn left_for_singles(config: &Config, promises: u8) -> Option<u8> {
        (promises > 0).then(|| config.assembly.saturating_sub(promises).max(1))
    }

    /// How many more slots than that simulations of one rank hold.
    fn over(&self) -> u8 {
        let room = &self.server.room;
        Self::left_for_singles(self.config, room.promises)
            .map_or(0, |left| room.held_by_singles.saturating_sub(left))
    }

    fn taken_before_at_most(&mut self) {
        self.server.room.taken_before = self.server.room.taken_before.min(self.over());
    }

    fn singles_may_take(&self) -> bool {
        let room = &self.server.room;
        self.fault(Fault::SinglesIgnorePromises)
            || Self::left_for_singles(self.config, room.promises)
                .is_none_or(|left| room.held_by_singles < left)
    }

    fn request_slot(&mut self, simulation: u8) {
        let entry = self.entry(simulation);
        let waits = entry.sample_waits;
        let Some(run) = entry.run.as_mut().filter(|_| !waits) else { return };
        if run.wants_slot || run.assembly.as_ref().is_none_or(|assembly| assembly.slot.is_some()) {
            return;
        }
        run.wants_slot = true;
        let promised = run.promised;
        let room = &mut self.server.room;
        let row = if promised { &mut room.promised_row } else { &mut room.single_row };
        row.push_back(simulation);
        self.serve_rows();
    }

    fn take_slot(&mut self) -> Option<Slot> {
        let slot = self.server.unused_slot();
        self.server.buffer.take_free(self.config).then_some(slot)
    }

    fn serve_rows(&mut self) {
        while let Some(&simulation) = self.server.room.promised_row.front() {
            if self.wants_slot(simulation, true) {
                let Some(slot) = self.take_slot() else { return };
                self.give_slot(simulation, slot);
            }
            self.server.room.promised_row.pop_front();
        }
        while let Some(&simulation) = self.server.room.single_row.front() {
            if self.wants_slot(simulation, false) {
                if !self.singles_may_take() {
                    return;
                }
                let Some(slot) = self.take_slot() else { return };
                self.server.room.held_by_singles += 1;
                self.entry(simulation).holds_slot_of_singles = true;
                self.give_slot(simulation, slot);
            }
            self.server.room.single_row.pop_front();
        }
    }

    fn wants_slot(&mut self, simulation: u8, promised: bool) -> bool {
        self.run(simulation).is_some_and(|run| run.wants_slot && run.promised == promised)
    }

    fn give_slot(&mut self, simulation: u8, slot: Slot) {
        if let Some(run) = self.run(simulation) {
            run.wants_slot = false;
            if let Some(assembly) = &mut run.assembly {
                assembly.slot = Some(slot);
            }
        }
        if !self.fault(Fault::SlotResumesNobody) {
            self.resume_ranks(simulation, Wait::Slot);
        }
    }

    fn resume_ranks(&mut self, simulation: u8, reason: Wait) {
        let Some(run) = self.run(simulation) else { return };
        for rank in run.ranks.iter_mut().filter(|rank| rank.wait == Some(reason)) {
            rank.wait = None;
        }
    }

    fn promise(&mut self, simulation: u8) -> bool {
        let most = if self.fault(Fault::PromisesWithoutLimit) { u8::MAX } else { self.config.assembly };
        let by_id = self.config.rule == Rule::UnorderedById;
        let room = &mut self.server.room;
        let Some(run) = &mut self.server.simulations[usize::from(simulation)].run else { return false };
        if run.promised {
            return true;
        }
        if room.promises < most {
            room.promises += 1;
            run.promised = true;
            self.server.room.taken_before = self.over();
            return true;
        }
        if !room.promise_row.contains(&simulation) {
            room.promise_row.push_back(simulation);
            if by_id {
                room.promise_row.make_contiguous().sort_unstable();
            }
        }
        false
    }

    fn end_promise(&mut self) {
        if self.fault(Fault::PromiseKeptAtEnd) {
            return;
        }
        self.server.room.promises -= 1;
        self.taken_before_at_most();
        if !self.fault(Fault::FreedPromiseGoesToNobody) {
            self.grant_promises();
        }
    }

    fn grant_promises(&mut self) {
        while self.server.room.promises < self.config.assembly {
            let Some(simulation) = self.server.room.promise_row.pop_front() else { return };
            self.welcome(simulation);
        }
    }

    fn drop_waiting_samples(&mut self, unwanted: impl Fn(&Waiting) -> bool) {
        for waiting in std::mem::take(&mut self.server.room.complete) {
            if !unwanted(&waiting) {
                self.server.room.complete.push_back(waiting);
                continue;
            }
            self.server.buffer.give_back();
            self.server.nb_settled += 1;
            self.let_go_of_slot(waiting.key.simulation);
            self.entry(waiting.key.simulation).sample_waits = false;
        }
    }

    // member.rs

    /// The last rank of a simulation has joined; what the others did before matters to nobody else.
    pub fn join(&mut self, simulation: u8) {
        let rank = Rank { local: 0, input: Input::Header, wait: None, finalized: false, acknowledged: false };
        let ranks = vec![rank; usize::from(self.size(simulation))];
        let run = Run { assembly: None, first: 0, promised: false, wants_slot: false, ranks };
        self.entry(simulation).run = Some(run);
        self.welcome(simulation);
    }

    fn welcome(&mut self, simulation: u8) {
        let several = self.size(simulation) > 1;
        // Whoever sends nothing here holds nothing here.
        if several && self.config.gets_steps_of(simulation, self.rank) && !self.promise(simulation) {
            return;
        }
        let parts = usize::from(self.size(simulation) * self.config.parts);
        let entry = self.entry(simulation);
        let (complete, kept) = (entry.complete, entry.kept.take());
        let Some(run) = &mut entry.run else { return };
        let fresh = Assembly { slot: None, arrived: 0, content: vec![0; parts] };
        run.assembly = Some(kept.unwrap_or(fresh));
        run.first = complete;
        for rank in &mut run.ranks {
            rank.local = complete;
        }
    }

    fn on_finalize(&mut self, simulation: u8, rank: usize) {
        if let Some(run) = self.run(simulation) {
            run.ranks[rank].finalized = true;
        }
        self.acknowledge(simulation);
    }

    fn acknowledge(&mut self, simulation: u8) {
        let sent = self.config.steps_at(simulation, self.rank);
        let early = self.fault(Fault::AcknowledgedAtOnce);
        let entry = self.entry(simulation);
        let complete = entry.complete;
        let Some(run) = &mut entry.run else { return };
        let all = run.ranks.iter().all(|rank| rank.finalized);
        let mut told = false;
        for rank in run.ranks.iter_mut().filter(|rank| rank.finalized && !rank.acknowledged) {
            if all || sent <= complete || early {
                rank.acknowledged = true;
                told = true;
            }
        }
        if told && sent > complete {
            self.break_law(Law::AcknowledgedTooEarly);
        }
        if all && (self.config.servers == 1 || self.fault(Fault::FinalUnconfirmed)) {
            self.settle(simulation, Status::Finished);
        } else if all {
            self.end_run(simulation);
            self.entry(simulation).status = Status::Finished;
            self.check_over();
        }
    }

    pub fn settle(&mut self, simulation: u8, status: Status) {
        self.end_run(simulation);
        let entry = self.entry(simulation);
        (entry.status, entry.settled) = (status, true);
        self.server.nb_final += 1;
        self.check_over();
    }

    pub fn end_run(&mut self, simulation: u8) {
        let Some(mut run) = self.entry(simulation).run.take() else { return };
        if self.fault(Fault::FinishedSamplesDropped) {
            self.drop_waiting_samples(|waiting| waiting.key.simulation == simulation);
        }
        if let Some(assembly) = run.assembly.take().filter(|assembly| assembly.slot.is_some()) {
            if self.fault(Fault::AssemblyKeptAtEnd) {
                self.entry(simulation).kept = Some(assembly);
            } else {
                if !self.fault(Fault::SlotLostAtEnd) {
                    self.server.buffer.give_back();
                }
                self.let_go_of_slot(simulation);
            }
        }
        self.server.room.promise_row.retain(|&other| other != simulation);
        if run.promised {
            self.end_promise();
        }
        self.serve_rows();
    }

    // data.rs

    /// Reads on from one rank: its header and what follows it, or the next part of a body, or its Finalize.
    pub fn read(&mut self, simulation: u8, rank: usize) {
        let sent = self.config.steps_at(simulation, self.rank);
        let parts = self.config.parts;
        let Some(run) = self.run(simulation) else { return };
        let reading = &mut run.ranks[rank];
        match reading.input {
            Input::Header if reading.local == sent => self.on_finalize(simulation, rank),
            Input::Header | Input::Placing => {
                if self.place(simulation, rank) {
                    self.read_part(simulation, rank, 0);
                }
            }
            Input::Body(have) => self.read_part(simulation, rank, have),
            Input::Discard(have) if have + 1 < parts => reading.input = Input::Discard(have + 1),
            Input::Discard(_) => {
                reading.input = Input::Header;
                reading.local += 1;
            }
        }
    }

    /// Whether the body of a frame goes to a slot now.
    fn place(&mut self, simulation: u8, rank: usize) -> bool {
        let entry = self.entry(simulation);
        let step = entry.complete;
        let Some(run) = &mut entry.run else { return false };
        let Some(assembly) = &mut run.assembly else { return false };
        let local = run.ranks[rank].local;
        let arrived = assembly.arrived & 1 << rank != 0;
        if local == step && !arrived {
            if assembly.slot.is_none() {
                run.ranks[rank].input = Input::Placing;
                self.request_slot(simulation);
                let Some(run) = self.run(simulation) else { return false };
                if run.assembly.as_ref().is_none_or(|assembly| assembly.slot.is_none()) {
                    run.ranks[rank].wait = Some(Wait::Slot);
                    return false;
                }
            }
            return true;
        }
        if local <= step {
            run.ranks[rank].input = Input::Discard(0);
            return false;
        }
        if local == step + 1 && arrived {
            run.ranks[rank].input = Input::Placing;
            run.ranks[rank].wait = Some(Wait::Step);
            return false;
        }
        self.break_law(Law::UnexpectedFrame);
        false
    }

    fn read_part(&mut self, simulation: u8, rank: usize, part: u8) {
        let parts = self.config.parts;
        let entry = self.entry(simulation);
        let stamp = stamp(entry.attempt, entry.complete);
        let Some(run) = &mut entry.run else { return };
        let reading = &mut run.ranks[rank];
        let Some(assembly) = run.assembly.as_mut().filter(|assembly| assembly.slot.is_some()) else {
            return self.break_law(Law::BodyWithoutSlot);
        };
        assembly.content[rank * usize::from(parts) + usize::from(part)] = stamp;
        if part + 1 < parts {
            reading.input = Input::Body(part + 1);
            return;
        }
        reading.input = Input::Header;
        reading.local += 1;
        assembly.arrived |= 1 << rank;
        if assembly.arrived.count_ones() == run.ranks.len() as u32 {
            self.step_complete(simulation);
        }
    }

    fn step_complete(&mut self, simulation: u8) {
        let entry = self.entry(simulation);
        let (step, stamp) = (entry.complete, stamp(entry.attempt, entry.complete));
        let Some(assembly) = entry.run.as_mut().and_then(|run| run.assembly.as_mut()) else { return };
        let torn = assembly.content.iter().any(|&part| part != stamp);
        assembly.content.fill(0);
        assembly.arrived = 0;
        let slot = assembly.slot.take();
        entry.complete += 1;
        let key = Key { simulation, draw: entry.draw, local: step };
        if torn {
            self.break_law(Law::TornSample);
        }
        if let Some(slot) = slot {
            self.publish(slot, key);
        }
        if !self.fault(Fault::AheadNotResumed) {
            self.resume_ranks(simulation, Wait::Step);
        }
        self.acknowledge(simulation);
    }

    // control.rs

    /// A higher attempt is registered: the one before is over, be it finished here. With new parameters there is nothing
    /// yet.
    pub fn register(&mut self, simulation: u8, redrawn: bool) {
        self.end_run(simulation);
        let forgets = self.fault(Fault::RedrawForgotten);
        let entry = self.entry(simulation);
        if redrawn && !(forgets && entry.status == Status::Finished) {
            entry.draw += 1;
            entry.complete = 0;
        }
        entry.attempt += 1;
        entry.status = Status::Open;
    }

    pub fn stop(&mut self) {
        self.server.stopped = true;
        self.drop_waiting_samples(|_| true);
        for simulation in 0..self.config.sizes.len() as u8 {
            let Simulation { status, settled, .. } = *self.entry(simulation);
            if !settled {
                let finished = status == Status::Finished;
                self.settle(simulation, if finished { Status::Finished } else { Status::Dropped });
            }
        }
    }

    // reception.rs

    fn check_over(&mut self) {
        let finished = self.server.simulations.iter().all(|entry| entry.status != Status::Open);
        let all = usize::from(self.server.nb_final) == self.config.sizes.len()
            || (finished && self.fault(Fault::OverUnconfirmed));
        if !self.server.over && all && self.server.room.complete.is_empty() {
            self.server.over = true;
            self.server.buffer.closed = true;
        }
    }
}

/// Which attempt wrote a part, and of which step.
const fn stamp(attempt: u8, step: u8) -> u8 {
    attempt << 4 | step
}
