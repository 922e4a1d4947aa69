//! Who waits for what of the training buffer: complete samples for room, simulations for slots and for promises.
//!
//! A simulation holds at most one slot, be it under assembly or complete and waiting for room: so none that runs
//! ahead takes from another. Simulations of several ranks are promised one of the assembly slots when they join; those
//! of one rank use what is free, and no more than the promises leave over. All rows are served in order.

use super::assembly::Assembly;
use super::connection::{ConnectionId, Wait};
use super::reception::Reception;
use crate::buffer::{SampleKey, SlotCounts, SlotWriter};
use crate::sync::Arc;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A complete sample that waits for room.
#[derive(Debug)]
struct Waiting {
    slot: SlotWriter,
    key: SampleKey,
    parameters: Arc<[f64]>,
}

#[derive(Debug)]
pub(super) struct Room {
    assembly_slots: usize,
    /// In the order of completion; never longer than there are slots.
    complete: VecDeque<Waiting>,
    /// Promised simulations that lack a slot. Entries whose simulation no longer wants one are passed over.
    promised_row: VecDeque<u32>,
    /// The other simulations that lack a slot.
    single_row: VecDeque<u32>,
    /// Simulations of several ranks that have joined and wait for a promise.
    promise_row: VecDeque<u32>,
    promises: usize,
    /// Slots that simulations of one rank hold.
    held_by_singles: usize,
    /// Since when complete samples wait.
    waiting_since: Option<Instant>,
    waited: Duration,
}

impl Room {
    /// With places for all that can wait at once: standing in a row allocates nothing.
    pub(super) fn new(slots: SlotCounts, simulations: usize) -> Self {
        Self {
            assembly_slots: slots.assembly,
            complete: VecDeque::with_capacity(simulations.min(slots.total())),
            promised_row: VecDeque::with_capacity(simulations.min(slots.assembly)),
            single_row: VecDeque::with_capacity(simulations),
            promise_row: VecDeque::new(),
            promises: 0,
            held_by_singles: 0,
            waiting_since: None,
            waited: Duration::ZERO,
        }
    }

    /// No complete sample waits.
    pub(super) fn is_drained(&self) -> bool {
        self.complete.is_empty()
    }

    pub(super) fn samples_waiting(&self) -> usize {
        self.complete.len()
    }

    /// The complete samples that wait.
    pub(super) fn keys_waiting(&self) -> impl Iterator<Item = SampleKey> + '_ {
        self.complete.iter().map(|waiting| waiting.key)
    }

    /// Counts a wait of before a restart.
    pub(super) fn waited_before(&mut self, waited: Duration) {
        self.waited += waited;
    }

    /// Time during which complete samples waited for room.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        self.waited + self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether a simulation of one rank may take a slot without breaking a promise.
    const fn singles_may_take(&self) -> bool {
        let left = self.assembly_slots.saturating_sub(self.promises);
        self.promises == 0 || self.held_by_singles < if left == 0 { 1 } else { left }
    }
}

impl Reception {
    /// Publishes a complete sample, behind those that wait already.
    pub(super) fn publish(&mut self, slot: SlotWriter, key: SampleKey, parameters: Arc<[f64]>) {
        let slot = if self.room.complete.is_empty() {
            match self.buffer.publish(slot, key, &parameters) {
                Ok(()) => return self.published(key.simulation),
                Err(slot) => slot,
            }
        } else {
            slot
        };
        self.simulations[key.simulation as usize].sample_waits = true;
        self.room.complete.push_back(Waiting { slot, key, parameters });
        self.room.waiting_since.get_or_insert(self.now);
        self.check_buffer();
    }

    /// Room or a slot may be there: serves who waits.
    pub(super) fn serve_room(&mut self) {
        while let Some(Waiting { slot, key, parameters }) = self.room.complete.pop_front() {
            if let Err(slot) = self.buffer.publish(slot, key, &parameters) {
                self.room.complete.push_front(Waiting { slot, key, parameters });
                self.check_buffer();
                break;
            }
            self.published(key.simulation);
        }
        if self.room.complete.is_empty() {
            if let Some(since) = self.room.waiting_since.take() {
                self.room.waited += self.now.saturating_duration_since(since);
            }
            self.check_over();
        }
        self.serve_rows();
    }

    /// A sample of the simulation is in the population: its slot is its own no longer.
    fn published(&mut self, simulation: u32) {
        self.let_go_of_slot(simulation);
        let entry = &mut self.simulations[simulation as usize];
        if std::mem::take(&mut entry.sample_waits) && self.somebody_waits_for_slot(simulation) {
            self.request_slot(simulation);
        }
        // The sample may have taken the place of another, whose slot is free now.
        self.serve_rows();
    }

    fn somebody_waits_for_slot(&self, simulation: u32) -> bool {
        self.simulations[simulation as usize].run.as_ref().is_some_and(|run| {
            run.ranks.values().filter_map(|rank| rank.connection).any(|id| {
                self.connections
                    .get(id)
                    .and_then(|connection| connection.member())
                    .is_some_and(|member| member.wait == Some(Wait::Slot))
            })
        })
    }

    /// A simulation of one rank counts as holding a slot from taking it until publishing it or giving it back.
    pub(super) fn let_go_of_slot(&mut self, simulation: u32) {
        let entry = &mut self.simulations[simulation as usize];
        if std::mem::take(&mut entry.holds_slot_of_singles) {
            self.room.held_by_singles -= 1;
        }
    }

    /// Gives a simulation of one rank a slot if one is free that nobody waits for; else nothing happens.
    pub(super) fn give_spare_slot(&mut self, simulation: u32) {
        let room = &self.room;
        if !room.promised_row.is_empty() || !room.single_row.is_empty() || !room.singles_may_take() {
            return;
        }
        let entry = &mut self.simulations[simulation as usize];
        let Some(run) = entry.run.as_mut().filter(|run| !run.promised && !entry.sample_waits) else { return };
        let Some(assembly) = run.assembly.as_mut().filter(|assembly| !assembly.has_slot()) else { return };
        let Some(slot) = self.buffer.take_slot() else { return };
        assembly.put_slot(slot);
        self.room.held_by_singles += 1;
        entry.holds_slot_of_singles = true;
    }

    /// Takes back a slot that nothing was put in.
    pub(super) fn take_slot_back(&mut self, simulation: u32) {
        let run = self.simulations[simulation as usize].run.as_mut();
        if run.and_then(|run| run.assembly.as_mut()).is_some_and(Assembly::drop_slot) {
            self.let_go_of_slot(simulation);
            self.serve_rows();
        }
    }

    /// Gets the simulation a slot for its lowest incomplete step, now or in its turn.
    pub(super) fn request_slot(&mut self, simulation: u32) {
        let entry = &mut self.simulations[simulation as usize];
        let Some(run) = entry.run.as_mut().filter(|_| !entry.sample_waits) else { return };
        if run.wants_slot || run.assembly.as_ref().is_none_or(|assembly| assembly.has_slot()) {
            return;
        }
        run.wants_slot = true;
        let row = if run.promised { &mut self.room.promised_row } else { &mut self.room.single_row };
        row.push_back(simulation);
        self.serve_rows();
    }

    /// Gives free slots to those who want one, in order: promised simulations first.
    pub(super) fn serve_rows(&mut self) {
        while let Some(&simulation) = self.room.promised_row.front() {
            if self.wants_slot(simulation, true) {
                let Some(slot) = self.buffer.take_slot() else { return };
                self.give_slot(simulation, slot);
            }
            self.room.promised_row.pop_front();
        }
        while let Some(&simulation) = self.room.single_row.front() {
            if self.wants_slot(simulation, false) {
                if !self.room.singles_may_take() {
                    return;
                }
                let Some(slot) = self.buffer.take_slot() else { return };
                self.room.held_by_singles += 1;
                self.simulations[simulation as usize].holds_slot_of_singles = true;
                self.give_slot(simulation, slot);
            }
            self.room.single_row.pop_front();
        }
    }

    fn wants_slot(&self, simulation: u32, promised: bool) -> bool {
        self.simulations[simulation as usize]
            .run
            .as_ref()
            .is_some_and(|run| run.wants_slot && run.promised == promised)
    }

    fn give_slot(&mut self, simulation: u32, slot: SlotWriter) {
        if let Some(run) = &mut self.simulations[simulation as usize].run {
            run.wants_slot = false;
            if let Some(assembly) = &mut run.assembly {
                assembly.put_slot(slot);
            }
        }
        self.resume_ranks(simulation, Wait::Slot);
    }

    /// Reads again from the ranks of a simulation that waited for this.
    pub(super) fn resume_ranks(&mut self, simulation: u32, reason: Wait) {
        let Some(run) = &self.simulations[simulation as usize].run else { return };
        let mut resumed = false;
        for id in run.ranks.values().filter_map(|rank| rank.connection) {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let Some(member) = connection.member_mut().filter(|member| member.wait == Some(reason)) else {
                continue;
            };
            member.wait = None;
            // Silence counts only while the session is willing to read.
            connection.heard = self.now;
            resumed = true;
            if !connection.queued && connection.has_work() {
                connection.queued = true;
                self.ready.push_back(id);
            }
        }
        if let Some(timeout) = self.config.simulation_timeout.filter(|_| resumed) {
            self.look_by(self.now + timeout);
        }
    }

    /// Reads nothing more from a connection until what it waits for is there.
    pub(super) fn hold(&mut self, id: ConnectionId, reason: Wait) {
        if let Some(member) = self.connections.get_mut(id).and_then(|connection| connection.member_mut()) {
            member.wait = Some(reason);
        }
    }

    /// Promises the simulation an assembly slot; false when it has to stand in the row for one.
    pub(super) fn promise(&mut self, simulation: u32) -> bool {
        let Some(run) = &mut self.simulations[simulation as usize].run else { return false };
        if run.promised {
            return true;
        }
        if self.room.promises < self.room.assembly_slots {
            self.room.promises += 1;
            run.promised = true;
            return true;
        }
        if !self.room.promise_row.contains(&simulation) {
            log::info!(
                "simulation {simulation} waits to join: its {} ranks need an assembly slot, and all {} are promised",
                run.size,
                self.room.assembly_slots
            );
            self.room.promise_row.push_back(simulation);
        }
        false
    }

    pub(super) fn waits_for_promise(&self, simulation: u32) -> bool {
        self.room.promise_row.contains(&simulation)
    }

    /// Takes note that a promise is free again, and gives it to the next simulation in the row.
    pub(super) fn end_promise(&mut self) {
        self.room.promises -= 1;
        self.grant_promises();
    }

    fn grant_promises(&mut self) {
        // Those in the row have been told to stop: after a Welcome their data would be read as that of a study that goes on.
        if self.stopped {
            return;
        }
        while self.room.promises < self.room.assembly_slots {
            let Some(simulation) = self.room.promise_row.pop_front() else { return };
            self.welcome(simulation);
        }
    }

    /// Takes a simulation whose attempt is over out of the row for promises.
    pub(super) fn leave_promise_row(&mut self, simulation: u32) {
        self.room.promise_row.retain(|&other| other != simulation);
    }

    /// Throws away the complete samples that wait for room: the study stops.
    pub(super) fn drop_waiting_samples(&mut self) {
        for Waiting { key, .. } in std::mem::take(&mut self.room.complete) {
            self.let_go_of_slot(key.simulation);
            self.simulations[key.simulation as usize].sample_waits = false;
        }
        if let Some(since) = self.room.waiting_since.take() {
            self.room.waited += self.now.saturating_duration_since(since);
        }
    }

    /// After a refused publication: a buffer that failed or was closed takes nothing any more.
    fn check_buffer(&mut self) {
        if let Some(text) = self.buffer.failure() {
            self.fatal = Some(text.to_owned());
        } else if self.buffer.is_closed() && !self.training_over {
            log::warn!(
                "the training buffer was closed while simulations were still sending: the study stops"
            );
            self.stop();
        }
    }

    /// Simulations that stand in a row for a slot.
    pub(super) fn slot_waiters(&self) -> usize {
        let waiting = |row: &VecDeque<u32>, promised| {
            row.iter().filter(|&&simulation| self.wants_slot(simulation, promised)).count()
        };
        waiting(&self.room.promised_row, true) + waiting(&self.room.single_row, false)
    }
}
