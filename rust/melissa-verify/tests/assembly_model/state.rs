//! All that a study of the model is at one moment.

use crate::buffer::{Buffer, Key, Slot};
use crate::config::Config;
use std::collections::VecDeque;

/// A law that a single step has broken; the first is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Law {
    /// A time step was published of which a part is of another attempt, of another step, or was never written.
    TornSample,
    PublishedTwice,
    /// Samples are published in the order in which they became complete.
    PublishedOutOfOrder,
    DeliveredTwice,
    DeliveredUnpublished,
    EvictedUnseen,
    /// A frame is not of the step that its rank has to send next.
    UnexpectedFrame,
    /// A rank was told that all it sent is in memory, and it is not.
    AcknowledgedTooEarly,
    /// A body came for which there is no slot.
    BodyWithoutSlot,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wait {
    Slot,
    Step,
}

/// What comes next on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    Header,
    /// A data frame waits for its place.
    Placing,
    /// So many parts of a body are in the slot.
    Body(u8),
    /// So many parts of a body that nobody wants were read.
    Discard(u8),
}

/// One rank of a client at one server rank.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rank {
    /// Which of the time steps of this server rank its next or current frame is of.
    pub local: u8,
    pub input: Input,
    pub wait: Option<Wait>,
    pub finalized: bool,
    pub acknowledged: bool,
}

/// The lowest incomplete step of a simulation at a server rank.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Assembly {
    pub slot: Option<Slot>,
    /// Ranks whose part has arrived.
    pub arrived: u8,
    /// What is in the slot, rank by rank and part by part: attempt and step, or 0.
    pub content: Vec<u8>,
}

/// The attempt that is connected.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    /// `None` while it waits for its promise.
    pub assembly: Option<Assembly>,
    /// Steps of this server rank that were complete when it was welcomed.
    pub first: u8,
    pub promised: bool,
    pub wants_slot: bool,
    pub ranks: Vec<Rank>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    Open,
    Finished,
    Dropped,
}

/// One simulation at one server rank.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Simulation {
    pub status: Status,
    /// Its status stays for good.
    pub settled: bool,
    /// The registered attempt, and its parameters: the first, or new ones.
    pub attempt: u8,
    pub draw: u8,
    /// Complete steps, which are the lowest ones.
    pub complete: u8,
    pub holds_slot_of_singles: bool,
    pub sample_waits: bool,
    pub run: Option<Run>,
    /// What an attempt has left behind, by a fault.
    pub kept: Option<Assembly>,
}

/// A complete sample that waits for room.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Waiting {
    pub slot: Slot,
    pub key: Key,
    /// Its number in the order of completion.
    pub number: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Room {
    pub complete: VecDeque<Waiting>,
    pub promised_row: VecDeque<u8>,
    pub single_row: VecDeque<u8>,
    pub promise_row: VecDeque<u8>,
    pub promises: u8,
    pub held_by_singles: u8,
    /// Slots that simulations of one rank had taken before a promise was given that left them fewer.
    pub taken_before: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Server {
    pub simulations: Vec<Simulation>,
    pub room: Room,
    pub buffer: Buffer,
    pub nb_final: u8,
    pub stopped: bool,
    pub over: bool,
    /// Samples that became complete, and those of them that were published or thrown away.
    pub nb_complete: u8,
    pub nb_settled: u8,
}

/// What the control plane wants of a simulation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Control {
    Runs,
    /// Its attempt is to be replaced; the client may be dead, or not.
    Replaces,
    /// The same, and the next one has new parameters.
    Redraws,
    GivesUp,
    /// It is finished on every server rank: each is told that this is final.
    Confirms,
}

/// A simulation as its client and the control plane see it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Client {
    pub attempt: u8,
    pub draw: u8,
    pub control: Control,
    /// Server ranks at which all ranks of this attempt have joined, one bit each.
    pub joined: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub servers: Vec<Server>,
    pub clients: Vec<Client>,
    pub replacements: u8,
    pub stopping: bool,
    pub broken: Option<Law>,
}

impl State {
    pub fn new(config: &Config) -> Self {
        let simulation = Simulation {
            status: Status::Open,
            settled: false,
            attempt: 1,
            draw: 0,
            complete: 0,
            holds_slot_of_singles: false,
            sample_waits: false,
            run: None,
            kept: None,
        };
        let server = Server {
            simulations: vec![simulation; config.sizes.len()],
            room: Room {
                complete: VecDeque::new(),
                promised_row: VecDeque::new(),
                single_row: VecDeque::new(),
                promise_row: VecDeque::new(),
                promises: 0,
                held_by_singles: 0,
                taken_before: 0,
            },
            buffer: Buffer::new(config),
            nb_final: 0,
            stopped: false,
            over: false,
            nb_complete: 0,
            nb_settled: 0,
        };
        let client = Client { attempt: 1, draw: 0, control: Control::Runs, joined: 0 };
        Self {
            servers: vec![server; usize::from(config.servers)],
            clients: vec![client; config.sizes.len()],
            replacements: config.replacements,
            stopping: false,
            broken: None,
        }
    }

    /// Reception is over on every server rank, and all that was received is delivered; to samplers that draw
    /// together, as much as there is for all of them.
    pub fn is_final(&self, config: &Config) -> bool {
        let drained = |server: &Server| server.buffer.population.is_empty();
        self.servers.iter().all(|server| server.over && server.buffer.guard.is_none())
            && (self.servers.iter().all(drained) || (config.in_step && self.servers.iter().any(drained)))
    }
}

impl Server {
    /// The slots in use, each as often as it has an owner: population, retired and pinned, complete and waiting, under
    /// assembly.
    pub fn owned(&self) -> Vec<Slot> {
        let mut copy = self.clone();
        let mut slots = Vec::new();
        copy.each_owned(|slot| slots.push(*slot));
        slots
    }

    fn each_owned(&mut self, mut visit: impl FnMut(&mut Slot)) {
        for simulation in &mut self.simulations {
            let assemblies = simulation.run.iter_mut().filter_map(|run| run.assembly.as_mut());
            assemblies
                .chain(&mut simulation.kept)
                .filter_map(|assembly| assembly.slot.as_mut())
                .for_each(&mut visit);
        }
        self.room.complete.iter_mut().for_each(|waiting| visit(&mut waiting.slot));
        self.buffer.population.iter_mut().for_each(|entry| visit(&mut entry.slot));
        self.buffer.retired.iter_mut().for_each(visit);
    }

    /// A number that no owner of a slot has.
    pub fn unused_slot(&self) -> Slot {
        let owned = self.owned();
        (0..).find(|slot| !owned.contains(slot)).unwrap_or(Slot::MAX)
    }

    /// Slots are alike: gives them the numbers of the order in which they are met, so that states that differ in
    /// nothing else are one.
    pub fn renumber_slots(&mut self, ordered: bool) {
        if !ordered {
            let (guard, views) = (self.buffer.guard, self.buffer.views.clone());
            let pinned = |slot| (guard == Some(slot), views.contains(&slot));
            self.buffer.population.sort_by_key(|entry| (entry.seen, entry.key, pinned(entry.slot)));
        }
        let mut known: Vec<Slot> = Vec::new();
        let mut number = |slot: &mut Slot| {
            let place = known.iter().position(|other| other == slot).unwrap_or_else(|| {
                known.push(*slot);
                known.len() - 1
            });
            *slot = place as Slot;
        };
        let mut guard = self.buffer.guard;
        let mut views = std::mem::take(&mut self.buffer.views);
        self.each_owned(&mut number);
        guard.iter_mut().for_each(&mut number);
        views.iter_mut().for_each(&mut number);
        views.sort_unstable();
        self.buffer.retired.sort_unstable();
        (self.buffer.guard, self.buffer.views) = (guard, views);
    }
}
