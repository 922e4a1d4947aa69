//! The time step of one simulation that is being put together.

use crate::buffer::SlotWriter;

/// Which parts of the lowest incomplete step have arrived, and the slot that they lie in.
///
/// A part is one field's share of one rank. The table is made when all ranks have joined and is used for every step.
#[derive(Debug)]
pub(super) struct Assembly {
    step: u64,
    slot: Option<SlotWriter>,
    /// The ledger knows of this step.
    declared: bool,
    nb_fields: usize,
    /// One entry per part, rank by rank.
    arrived: Vec<bool>,
    /// Fields that have arrived, per rank.
    of_rank: Vec<usize>,
    missing: usize,
}

impl Assembly {
    pub(super) fn new(nb_ranks: usize, nb_fields: usize, step: u64) -> Self {
        let parts = nb_ranks * nb_fields;
        Self {
            step,
            slot: None,
            declared: false,
            nb_fields,
            arrived: vec![false; parts],
            of_rank: vec![0; nb_ranks],
            missing: parts,
        }
    }

    pub(super) const fn step(&self) -> u64 {
        self.step
    }

    pub(super) const fn slot_mut(&mut self) -> Option<&mut SlotWriter> {
        self.slot.as_mut()
    }

    pub(super) const fn has_slot(&self) -> bool {
        self.slot.is_some()
    }

    pub(super) fn put_slot(&mut self, slot: SlotWriter) {
        self.slot = Some(slot);
    }

    /// Gives the slot back, and all that has arrived with it; false when there was none.
    pub(super) fn drop_slot(&mut self) -> bool {
        self.slot.take().is_some()
    }

    /// Says that the step is in the ledger; true when it was not said before.
    pub(super) const fn declare(&mut self) -> bool {
        !std::mem::replace(&mut self.declared, true)
    }

    pub(super) fn has(&self, rank: usize, field: usize) -> bool {
        self.arrived[rank * self.nb_fields + field]
    }

    /// Whether all of a rank's fields have arrived.
    pub(super) fn has_all_of(&self, rank: usize) -> bool {
        self.of_rank[rank] == self.nb_fields
    }

    /// The first field of a rank that has not arrived.
    pub(super) fn missing_field(&self, rank: usize) -> Option<usize> {
        (0..self.nb_fields).find(|&field| !self.has(rank, field))
    }

    /// Takes note of a part that was not there.
    pub(super) fn arrive(&mut self, rank: usize, field: usize) {
        let part = &mut self.arrived[rank * self.nb_fields + field];
        debug_assert!(!*part);
        *part = true;
        self.of_rank[rank] += 1;
        self.missing -= 1;
    }

    pub(super) const fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// The slot of the complete step; the table is then ready for step `next`.
    pub(super) fn take_complete(&mut self, next: u64) -> Option<SlotWriter> {
        debug_assert!(self.is_complete());
        self.arrived.fill(false);
        self.of_rank.fill(0);
        self.missing = self.arrived.len();
        self.declared = false;
        self.step = next;
        self.slot.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_complete_when_every_field_of_every_rank_has_arrived() {
        let mut assembly = Assembly::new(2, 2, 5);
        assert!(assembly.declare() && !assembly.declare());
        assembly.arrive(1, 1);
        assembly.arrive(1, 0);
        assert!(assembly.has_all_of(1) && !assembly.has_all_of(0));
        assembly.arrive(0, 0);
        assert_eq!(assembly.missing_field(0), Some(1));
        assert!(!assembly.is_complete());
        assembly.arrive(0, 1);
        assert!(assembly.is_complete());
        assert!(assembly.take_complete(6).is_none());
        assert_eq!(assembly.step(), 6);
        assert!(assembly.declare() && !assembly.has(1, 1) && !assembly.is_complete());
    }
}
