//! The table of simulations: what was registered, how each stands, and the attempt that is connected now.

use super::assembly::Assembly;
use super::connection::ConnectionId;
use super::join::Declared;
use super::state::{SimulationState, Status};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One rank of a connected attempt.
#[derive(Debug)]
pub(super) struct Rank {
    /// `None` once it has finalized and gone.
    pub(super) connection: Option<ConnectionId>,
    pub(super) fields: Option<Vec<Declared>>,
    /// Time steps that it has sent, as its finalize says.
    pub(super) sent: Option<u64>,
    pub(super) acknowledged: bool,
}

impl Rank {
    pub(super) const fn new(connection: ConnectionId) -> Self {
        Self { connection: Some(connection), fields: None, sent: None, acknowledged: false }
    }
}

/// What the connections of one attempt share.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) size: u32,
    /// Grows by ranks that have proved the key, never by the size that one of them states.
    pub(super) ranks: BTreeMap<u32, Rank>,
    /// Present once all ranks have joined.
    pub(super) assembly: Option<Assembly>,
    /// Holds one of the promised assembly slots (several ranks), or stands in the row for one.
    pub(super) promised: bool,
    /// Ranks that have finalized.
    pub(super) nb_finalized: usize,
    /// Stands in the row of those that lack a slot.
    pub(super) wants_slot: bool,
}

impl Run {
    pub(super) const fn new(size: u32) -> Self {
        Self {
            size,
            ranks: BTreeMap::new(),
            assembly: None,
            promised: false,
            nb_finalized: 0,
            wants_slot: false,
        }
    }

    pub(super) const fn has_several_ranks(&self) -> bool {
        self.size > 1
    }

    pub(super) fn all_joined(&self) -> bool {
        self.ranks.len() == self.size as usize && self.ranks.values().all(|rank| rank.fields.is_some())
    }

    pub(super) fn all_finalized(&self) -> bool {
        self.nb_finalized == self.size as usize
    }

    /// Says why the step under assembly can never be whole, if a rank has finalized without its part of it.
    pub(super) fn never_whole(&self, simulation: u32) -> Option<String> {
        let assembly = self.assembly.as_ref()?;
        let step = assembly.step();
        self.ranks.iter().find_map(|(&rank, entry)| {
            let sent = entry.sent.filter(|_| !assembly.has_all_of(rank as usize))?;
            Some(format!(
                "simulation {simulation}: rank {rank} has finalized after {sent} time steps, and others go on: time step \
                 {step} of rank {rank} will never come; every rank sends its share of every time step"
            ))
        })
    }

    pub(super) fn connections(&self) -> Vec<ConnectionId> {
        self.ranks.values().filter_map(|rank| rank.connection).collect()
    }

    /// Ranks that have not joined, in words.
    pub(super) fn absent(&self) -> String {
        let absent: Vec<String> = (0..self.size)
            .filter(|rank| self.ranks.get(rank).is_none_or(|rank| rank.fields.is_none()))
            .take(4)
            .map(|rank| rank.to_string())
            .collect();
        absent.join(", ")
    }
}

/// One planned simulation.
#[derive(Debug)]
pub(super) struct Simulation {
    /// The registered attempt; 0 before the first.
    pub(super) attempt: u32,
    pub(super) draw: u32,
    pub(super) parameters: Arc<[f64]>,
    pub(super) status: Status,
    /// Its status stays for good. With several server ranks a finished simulation may have to run again for another of them.
    pub(super) settled: bool,
    pub(super) host: String,
    pub(super) error: String,
    /// Attempts up to this one are over and may not connect again.
    pub(super) ended_attempt: u32,
    /// Complete steps of this draw.
    pub(super) steps: u64,
    /// It has one rank and holds a slot, under assembly or waiting for room.
    pub(super) holds_slot_of_singles: bool,
    /// A complete sample of it waits for room in the training buffer.
    pub(super) sample_waits: bool,
    pub(super) run: Option<Run>,
    /// Somebody is to be told of a change.
    pub(super) dirty: bool,
}

impl Simulation {
    pub(super) fn new() -> Self {
        Self {
            attempt: 0,
            draw: 0,
            parameters: Arc::from([]),
            status: Status::Planned,
            settled: false,
            host: String::new(),
            error: String::new(),
            ended_attempt: 0,
            steps: 0,
            holds_slot_of_singles: false,
            sample_waits: false,
            run: None,
            dirty: false,
        }
    }

    pub(super) fn state(&self, simulation_id: u32) -> SimulationState {
        SimulationState {
            simulation_id,
            attempt: self.attempt,
            draw: self.draw,
            status: self.status,
            steps_complete: self.steps,
            host: self.host.clone(),
            error: self.error.clone(),
        }
    }
}
