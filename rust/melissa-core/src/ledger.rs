//! What became of every time step: declared, then trained or dropped with a reason, and nothing between.
//!
//! The key is (simulation, draw, time step): redrawn parameters are a new draw. A step is *declared* by its first
//! valid header and *complete* when all of it is in memory; it ends *trained*, or *dropped*: its client was given up
//! before completing it, the study was stopped early, or it was complete and never trained. `declared` is the sum
//! of all ends once the ledger is closed. A second arrival is counted beside the sum.
//!
//! Each server rank has a ledger of the time steps that go to it. Within a draw they are kept by their number among these,
//! so that a set of them has no holes for the steps of other ranks; every argument and every answer is a time step.

mod state;

use std::collections::HashMap;

use thiserror::Error;

pub use state::{DrawSteps, LedgerState, LedgerStateError};

use crate::buffer::SampleKey;
use crate::wire::distribution::{ServerRank, Steps};

/// How far ahead of the highest declared step a new one may lie. Clients send in order, so that this is generous;
/// it bounds what one wild time step can make a bitset grow by.
const WINDOW: u64 = 1 << 16;
/// Time steps that a draw's sets have room for from the start, when the study says how many there are: receiving a
/// step then allocates nothing. Sets of longer simulations grow from there on.
const ROOM_AT_START: u64 = 1 << 20;

/// Why a declared step was never trained.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Its client was given up, or its parameters were redrawn, before it was complete.
    ClientFailed,
    /// The study was stopped early.
    StoppedEarly,
    /// It was complete, and training ended without it.
    Untrained,
}

impl Reason {
    pub const ALL: [Self; 3] = [Self::ClientFailed, Self::StoppedEarly, Self::Untrained];

    /// The name in reports and in Python.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientFailed => "client_failed",
            Self::StoppedEarly => "stopped_early",
            Self::Untrained => "untrained",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The sums of the ledger. Once it is closed, `declared == trained + dropped()`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sums {
    pub declared: u64,
    /// Steps whose every byte was in memory at some time; they are among the trained and the dropped.
    pub complete: u64,
    pub trained: u64,
    pub dropped_client_failed: u64,
    pub dropped_stopped_early: u64,
    pub dropped_untrained: u64,
    /// Arrivals of steps that were there already; not part of the sum.
    pub duplicates_refused: u64,
}

impl Sums {
    /// Steps dropped for any reason.
    pub const fn dropped(&self) -> u64 {
        self.dropped_client_failed + self.dropped_stopped_early + self.dropped_untrained
    }

    /// Declared steps whose end is still open; 0 once the ledger is closed.
    pub const fn open(&self) -> u64 {
        self.declared - self.trained - self.dropped()
    }

    const fn dropped_mut(&mut self, reason: Reason) -> &mut u64 {
        match reason {
            Reason::ClientFailed => &mut self.dropped_client_failed,
            Reason::StoppedEarly => &mut self.dropped_stopped_early,
            Reason::Untrained => &mut self.dropped_untrained,
        }
    }
}

/// What a declaration found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declared {
    /// The first header of this step.
    New,
    /// Declared before, by another rank or field of this attempt or by an earlier attempt.
    Known,
}

/// Why a step cannot be declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LedgerError {
    #[error(
        "time step {time_step} came, and study_options.nb_time_steps is {nb_time_steps}: the last one is {}",
        nb_time_steps.saturating_sub(1)
    )]
    BeyondEnd { time_step: u64, nb_time_steps: u64 },
    #[error(
        "time step {time_step} came where {expected} or little more was expected: steps are sent in order"
    )]
    TooFarAhead { time_step: u64, expected: u64 },
    #[error(
        "time step {time_step} of simulation {simulation} came, which belongs to server rank {owner}, and this is server \
         rank {rank} of {nb_ranks} (distribution \"{distribution}\")"
    )]
    OfAnotherRank {
        simulation: u32,
        time_step: u64,
        owner: u32,
        rank: u32,
        nb_ranks: u32,
        distribution: &'static str,
    },
    #[error("the ledger is closed: the study has ended")]
    Closed,
}

/// A set of time steps, one bit each, by their numbers among those of this server rank; it grows as far as steps were
/// put in.
#[derive(Debug)]
struct StepSet {
    words: Vec<u64>,
    len: u64,
}

impl StepSet {
    fn with_room_for(steps: u64) -> Self {
        Self { words: Vec::with_capacity(steps.div_ceil(64) as usize), len: 0 }
    }

    const fn place(step: u64) -> (usize, u64) {
        ((step / 64) as usize, 1 << (step % 64))
    }

    fn contains(&self, step: u64) -> bool {
        let (word, bit) = Self::place(step);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// False when the step was there already.
    fn insert(&mut self, step: u64) -> bool {
        let (word, bit) = Self::place(step);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u64::from(new);
        new
    }

    /// The lowest step from `start` on whose presence is `wanted`; absent ones go on for ever.
    fn next(&self, start: u64, wanted: bool) -> Option<u64> {
        let (first, _) = Self::place(start);
        for (index, &bits) in self.words.iter().enumerate().skip(first) {
            let mut found = if wanted { bits } else { !bits };
            if index == first {
                found &= u64::MAX << (start % 64);
            }
            if found != 0 {
                return Some(index as u64 * 64 + u64::from(found.trailing_zeros()));
            }
        }
        if wanted { None } else { Some(start.max(self.words.len() as u64 * 64)) }
    }

    /// The steps as inclusive ranges, ascending.
    fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut start = self.next(0, true);
        while let Some(first) = start {
            let end = self.next(first, false).unwrap_or(u64::MAX);
            ranges.push((first, end - 1));
            start = self.next(end, true);
        }
        ranges
    }
}

/// The steps of one draw of one simulation.
#[derive(Debug)]
struct Draw {
    declared: StepSet,
    complete: StepSet,
    trained: StepSet,
    /// One more than the highest declared number of a step.
    end: u64,
    /// Set when nothing more can become complete: what is incomplete, or comes from now on, is dropped for it.
    given_up: Option<Reason>,
}

impl Draw {
    /// A draw of which so many time steps belong to this server rank, as far as that is known.
    fn new(nb_time_steps: Option<u64>) -> Self {
        let set = || StepSet::with_room_for(nb_time_steps.unwrap_or(0).min(ROOM_AT_START));
        Self { declared: set(), complete: set(), trained: set(), end: 0, given_up: None }
    }
}

/// The account of all steps of a study. The session writes to it per sample, the trainer per batch.
#[derive(Debug)]
pub struct Ledger {
    draws: HashMap<(u32, u32), Draw>,
    rank: ServerRank,
    nb_time_steps: Option<u64>,
    sums: Sums,
    closed: bool,
}

impl Ledger {
    /// An empty ledger of a server of one rank; steps of `nb_time_steps` and more are refused when that number is given.
    pub fn new(nb_time_steps: Option<u64>) -> Self {
        Self::of_rank(nb_time_steps, ServerRank::ALONE)
    }

    /// An empty ledger of one server rank: steps of the others are refused.
    pub fn of_rank(nb_time_steps: Option<u64>, rank: ServerRank) -> Self {
        Self { draws: HashMap::new(), rank, nb_time_steps, sums: Sums::default(), closed: false }
    }

    /// The time steps of a simulation that belong to this server rank.
    pub const fn steps_of(&self, simulation: u32) -> Steps {
        self.rank.steps_of(simulation)
    }

    /// The number of a step among those of its simulation here.
    ///
    /// # Errors
    /// When it belongs to another server rank.
    pub const fn number_of(&self, simulation: u32, time_step: u64) -> Result<u64, LedgerError> {
        let ServerRank { rank, nb_ranks, distribution } = self.rank;
        match self.steps_of(simulation).index(time_step) {
            Some(number) => Ok(number),
            None => Err(LedgerError::OfAnotherRank {
                simulation,
                time_step,
                owner: distribution.rank_of(simulation, time_step, nb_ranks),
                rank,
                nb_ranks,
                distribution: distribution.name(),
            }),
        }
    }

    fn draw(&self, simulation: u32, draw: u32) -> Option<&Draw> {
        self.draws.get(&(simulation, draw))
    }

    /// Takes note of a header of this step. A step of a draw that was given up is dropped as it is declared.
    ///
    /// # Errors
    /// When the step lies beyond the declared number of steps or absurdly far ahead, belongs to another server rank, or
    /// the ledger is closed; nothing is noted then.
    pub fn declare(&mut self, key: SampleKey) -> Result<Declared, LedgerError> {
        let SampleKey { simulation, draw, time_step } = key;
        if self.closed {
            return Err(LedgerError::Closed);
        }
        if let Some(nb_time_steps) = self.nb_time_steps
            && time_step >= nb_time_steps
        {
            return Err(LedgerError::BeyondEnd { time_step, nb_time_steps });
        }
        let steps = self.steps_of(simulation);
        let number = self.number_of(simulation, time_step)?;
        let expected = self.draw(simulation, draw).map_or(0, |draw| draw.end);
        if number.saturating_sub(expected) > WINDOW {
            return Err(LedgerError::TooFarAhead { time_step, expected: steps.at(expected) });
        }
        let room = self.nb_time_steps.map(|end| steps.below(end));
        let draw = self.draws.entry((simulation, draw)).or_insert_with(|| Draw::new(room));
        if !draw.declared.insert(number) {
            return Ok(Declared::Known);
        }
        draw.end = draw.end.max(number + 1);
        self.sums.declared += 1;
        if let Some(reason) = draw.given_up {
            *self.sums.dropped_mut(reason) += 1;
        }
        Ok(Declared::New)
    }

    /// Takes note that all of a declared step is in memory; false when it is not a declared, incomplete step of a
    /// draw that still counts.
    pub fn complete(&mut self, key: SampleKey) -> bool {
        if self.closed {
            return false;
        }
        let Some(number) = self.steps_of(key.simulation).index(key.time_step) else { return false };
        let Some(draw) = self.draws.get_mut(&(key.simulation, key.draw)) else { return false };
        if draw.given_up.is_some() || !draw.declared.contains(number) || !draw.complete.insert(number) {
            return false;
        }
        self.sums.complete += 1;
        true
    }

    pub fn is_complete(&self, key: SampleKey) -> bool {
        let number = self.steps_of(key.simulation).index(key.time_step);
        self.draw(key.simulation, key.draw)
            .zip(number)
            .is_some_and(|(draw, number)| draw.complete.contains(number))
    }

    /// Counts an arrival of a step that was there already.
    pub const fn refuse_duplicate(&mut self) {
        self.sums.duplicates_refused += 1;
    }

    /// Takes note that a training step on these samples has returned; returns how many were trained for the first
    /// time. A sample drawn again counts once, and samples that never came over the wire are not the ledger's.
    pub fn mark_trained(&mut self, keys: impl IntoIterator<Item = SampleKey>) -> u64 {
        let mut first = 0;
        if self.closed {
            return first;
        }
        for key in keys {
            if let Some(number) = self.steps_of(key.simulation).index(key.time_step)
                && let Some(draw) = self.draws.get_mut(&(key.simulation, key.draw))
                && draw.complete.contains(number)
                && draw.trained.insert(number)
            {
                first += 1;
            }
        }
        self.sums.trained += first;
        first
    }

    /// The complete steps of a draw as inclusive ranges: what a client that runs it again may skip. Steps of other server
    /// ranks that lie within a range are none of them.
    pub fn complete_ranges(&self, simulation: u32, draw: u32) -> Vec<(u64, u64)> {
        let steps = self.steps_of(simulation);
        let ranges = self.draw(simulation, draw).map(|draw| draw.complete.ranges()).unwrap_or_default();
        ranges.into_iter().map(|(first, last)| (steps.at(first), steps.at(last))).collect()
    }

    /// The lowest step of this server rank, from `start` on, that is not complete; the greatest number that there is when the
    /// rank gets no step of the simulation.
    pub fn next_incomplete(&self, simulation: u32, draw: u32, start: u64) -> u64 {
        let steps = self.steps_of(simulation);
        let start = steps.below(start);
        steps.at(self
            .draw(simulation, draw)
            .and_then(|draw| draw.complete.next(start, false))
            .unwrap_or(start))
    }

    /// The step of this server rank that follows the highest declared one of a draw.
    pub fn declared_end(&self, simulation: u32, draw: u32) -> u64 {
        self.steps_of(simulation).at(self.draw(simulation, draw).map_or(0, |draw| draw.end))
    }

    /// How many declared steps of a draw are not complete.
    pub fn nb_incomplete(&self, simulation: u32, draw: u32) -> u64 {
        self.draw(simulation, draw).map_or(0, |draw| draw.declared.len - draw.complete.len)
    }

    /// The draws of which anything is known, as (simulation, draw), in no order.
    pub fn draws(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.draws.keys().copied()
    }

    /// How many steps of a draw are complete.
    pub fn nb_complete(&self, simulation: u32, draw: u32) -> u64 {
        self.draw(simulation, draw).map_or(0, |draw| draw.complete.len)
    }

    /// Gives a draw up: its incomplete steps, and any that are declared later, are dropped for `reason`. Its
    /// complete steps stay and may still be trained. Returns how many steps it dropped; a draw is given up once.
    pub fn drop_incomplete(&mut self, simulation: u32, draw: u32, reason: Reason) -> u64 {
        if self.closed {
            return 0;
        }
        let draw = self.draws.entry((simulation, draw)).or_insert_with(|| Draw::new(None));
        if draw.given_up.is_some() {
            return 0;
        }
        draw.given_up = Some(reason);
        let dropped = draw.declared.len - draw.complete.len;
        *self.sums.dropped_mut(reason) += dropped;
        dropped
    }

    /// Ends the account: complete steps that were not trained are dropped for `reason`, and incomplete ones of
    /// draws that nobody gave up are dropped because the study ended before them. Later calls change nothing.
    pub fn close(&mut self, reason: Reason) -> Sums {
        if !self.closed {
            self.closed = true;
            for draw in self.draws.values() {
                *self.sums.dropped_mut(reason) += draw.complete.len - draw.trained.len;
                if draw.given_up.is_none() {
                    self.sums.dropped_stopped_early += draw.declared.len - draw.complete.len;
                }
            }
        }
        self.sums
    }

    /// The sums so far.
    pub const fn sums(&self) -> Sums {
        self.sums
    }

    pub const fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn key(simulation: u32, draw: u32, time_step: u64) -> SampleKey {
        SampleKey { simulation, draw, time_step }
    }

    #[test]
    fn a_step_of_a_resubmitted_attempt_stays_one_declared_step() {
        let mut ledger = Ledger::new(None);
        assert_eq!(ledger.declare(key(1, 0, 0)), Ok(Declared::New));
        assert_eq!(ledger.declare(key(1, 0, 0)), Ok(Declared::Known));
        assert!(ledger.complete(key(1, 0, 0)));
        assert!(!ledger.complete(key(1, 0, 0)));
        assert_eq!(ledger.sums(), Sums { declared: 1, complete: 1, ..Sums::default() });
    }

    #[test]
    fn a_step_of_a_given_up_simulation_can_still_be_trained_when_it_was_complete() {
        let mut ledger = Ledger::new(None);
        ledger.declare(key(1, 0, 0)).unwrap();
        ledger.complete(key(1, 0, 0));
        ledger.declare(key(1, 0, 1)).unwrap();
        assert_eq!(ledger.drop_incomplete(1, 0, Reason::ClientFailed), 1);
        assert!(!ledger.complete(key(1, 0, 1)));
        assert_eq!(ledger.mark_trained([key(1, 0, 0), key(1, 0, 1), key(1, 0, 0)]), 1);
        let sums = ledger.close(Reason::Untrained);
        assert_eq!((sums.declared, sums.trained, sums.dropped_client_failed, sums.open()), (2, 1, 1, 0));
    }

    #[test]
    fn redrawn_parameters_are_another_draw_with_steps_of_its_own() {
        let mut ledger = Ledger::new(None);
        ledger.declare(key(4, 0, 0)).unwrap();
        ledger.drop_incomplete(4, 0, Reason::ClientFailed);
        assert_eq!(ledger.declare(key(4, 1, 0)), Ok(Declared::New));
        assert!(ledger.complete(key(4, 1, 0)));
        assert_eq!(ledger.sums().declared, 2);
    }

    #[test]
    fn what_comes_after_a_stop_is_declared_and_dropped() {
        let mut ledger = Ledger::new(None);
        ledger.drop_incomplete(0, 0, Reason::StoppedEarly);
        assert_eq!(ledger.declare(key(0, 0, 3)), Ok(Declared::New));
        assert_eq!(ledger.declare(key(0, 0, 3)), Ok(Declared::Known));
        assert_eq!(ledger.sums().dropped_stopped_early, 1);
        assert_eq!(ledger.sums().open(), 0);
    }

    #[test]
    fn a_wild_time_step_is_refused_and_allocates_nothing() {
        let mut ledger = Ledger::new(None);
        let wild = LedgerError::TooFarAhead { time_step: u64::MAX, expected: 0 };
        assert_eq!(ledger.declare(key(0, 0, u64::MAX)), Err(wild));
        assert!(ledger.draws.is_empty());
        let mut ledger = Ledger::new(Some(10));
        assert_eq!(ledger.declare(key(0, 0, 9)), Ok(Declared::New));
        let beyond = LedgerError::BeyondEnd { time_step: 10, nb_time_steps: 10 };
        assert_eq!(ledger.declare(key(0, 0, 10)), Err(beyond));
        assert!(beyond.to_string().contains("nb_time_steps is 10: the last one is 9"));
    }

    #[test]
    fn complete_steps_come_as_inclusive_ranges() {
        let mut ledger = Ledger::new(None);
        let steps: BTreeSet<u64> = (0..70).chain(75..=75).chain(127..200).collect();
        for &step in &steps {
            ledger.declare(key(2, 1, step)).unwrap();
            ledger.complete(key(2, 1, step));
        }
        assert_eq!(ledger.complete_ranges(2, 1), [(0, 69), (75, 75), (127, 199)]);
        assert_eq!(ledger.complete_ranges(2, 0), []);
        assert_eq!(ledger.next_incomplete(2, 1, 0), 70);
        assert_eq!(ledger.next_incomplete(2, 1, 75), 76);
        assert_eq!(ledger.next_incomplete(2, 1, 130), 200);
        assert_eq!(ledger.next_incomplete(9, 0, 5), 5);
        assert_eq!(ledger.nb_complete(2, 1), steps.len() as u64);
    }

    /// What the sums are computed from in the model: one plain entry per key.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum End {
        Incomplete,
        Complete,
        Trained,
        Dropped(Reason),
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Declare(SampleKey),
        Complete(SampleKey),
        Train(Vec<SampleKey>),
        GiveUp(u32, u32, Reason),
        Duplicate,
    }

    fn keys() -> impl Strategy<Value = SampleKey> {
        (0..3u32, 0..2u32, 0..140u64).prop_map(|(simulation, draw, step)| key(simulation, draw, step))
    }

    fn operations() -> impl Strategy<Value = Operation> {
        prop_oneof![
            6 => keys().prop_map(Operation::Declare),
            6 => keys().prop_map(Operation::Complete),
            3 => prop::collection::vec(keys(), 0..8).prop_map(Operation::Train),
            1 => (0..3u32, 0..2u32, prop_oneof![Just(Reason::ClientFailed), Just(Reason::StoppedEarly)])
                .prop_map(|(simulation, draw, reason)| Operation::GiveUp(simulation, draw, reason)),
            1 => Just(Operation::Duplicate),
        ]
    }

    fn sums_of(model: &HashMap<SampleKey, End>, completed: u64, duplicates_refused: u64) -> Sums {
        let count = |end: End| model.values().filter(|&&other| other == end).count() as u64;
        Sums {
            declared: model.len() as u64,
            complete: completed,
            trained: count(End::Trained),
            dropped_client_failed: count(End::Dropped(Reason::ClientFailed)),
            dropped_stopped_early: count(End::Dropped(Reason::StoppedEarly)),
            dropped_untrained: count(End::Dropped(Reason::Untrained)),
            duplicates_refused,
        }
    }

    proptest! {
        #[test]
        fn the_ledger_counts_like_a_map_with_one_entry_per_step(
            operations in prop::collection::vec(operations(), 0..300),
            untrained in any::<bool>(),
        ) {
            let mut ledger = Ledger::new(None);
            let mut model: HashMap<SampleKey, End> = HashMap::new();
            let mut given_up: HashMap<(u32, u32), Reason> = HashMap::new();
            let (mut completed, mut duplicates) = (0, 0);
            for operation in operations {
                match operation {
                    Operation::Declare(key) => {
                        let end = given_up.get(&(key.simulation, key.draw)).map_or(End::Incomplete, |&r| End::Dropped(r));
                        let expected = if model.contains_key(&key) { Declared::Known } else { Declared::New };
                        model.entry(key).or_insert(end);
                        prop_assert_eq!(ledger.declare(key), Ok(expected));
                    }
                    Operation::Complete(key) => {
                        let expected = model.get(&key) == Some(&End::Incomplete);
                        if expected {
                            model.insert(key, End::Complete);
                            completed += 1;
                        }
                        prop_assert_eq!(ledger.complete(key), expected);
                    }
                    Operation::Train(keys) => {
                        let mut first = 0;
                        for key in &keys {
                            if model.get(key) == Some(&End::Complete) {
                                model.insert(*key, End::Trained);
                                first += 1;
                            }
                        }
                        prop_assert_eq!(ledger.mark_trained(keys), first);
                    }
                    Operation::GiveUp(simulation, draw, reason) => {
                        let mut dropped = 0;
                        if given_up.insert((simulation, draw), reason).is_none() {
                            for (key, end) in &mut model {
                                if (key.simulation, key.draw) == (simulation, draw) && *end == End::Incomplete {
                                    *end = End::Dropped(reason);
                                    dropped += 1;
                                }
                            }
                        } else {
                            // The first reason stands.
                            let first = ledger.draws[&(simulation, draw)].given_up.unwrap();
                            given_up.insert((simulation, draw), first);
                        }
                        prop_assert_eq!(ledger.drop_incomplete(simulation, draw, reason), dropped);
                    }
                    Operation::Duplicate => {
                        duplicates += 1;
                        ledger.refuse_duplicate();
                    }
                }
                prop_assert_eq!(ledger.sums(), sums_of(&model, completed, duplicates));
            }
            for (&key, &end) in &model {
                let complete = matches!(end, End::Complete | End::Trained);
                prop_assert_eq!(ledger.is_complete(key), complete);
            }
            let reason = if untrained { Reason::Untrained } else { Reason::StoppedEarly };
            for end in model.values_mut() {
                match *end {
                    End::Complete => *end = End::Dropped(reason),
                    End::Incomplete => *end = End::Dropped(Reason::StoppedEarly),
                    _ => {}
                }
            }
            let sums = ledger.close(reason);
            prop_assert_eq!(sums, sums_of(&model, completed, duplicates));
            prop_assert_eq!(sums.declared, sums.trained + sums.dropped());
            prop_assert_eq!(ledger.declare(key(0, 0, 0)), Err(LedgerError::Closed));
            prop_assert_eq!(ledger.mark_trained(model.keys().copied()), 0);
            prop_assert_eq!(ledger.close(Reason::Untrained), sums);
        }
    }
}
