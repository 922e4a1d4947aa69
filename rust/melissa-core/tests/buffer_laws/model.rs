//! The plain model of a training buffer, and the buffers that must behave like it.

use crate::samples::number_of;
use crate::subject::{Ended, Subject};
use crate::tally::count;
use melissa_core::buffer::{BufferConfig, Kind, Sample};
use melissa_core::error::BufferError;
use melissa_core::snapshot::SnapshotState;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Buffers that go on beside each other.
const MOST_SUBJECTS: usize = 3;

/// What was done since the cut, as far as the buffer's state depends on it.
#[derive(Clone, Debug)]
enum Deed {
    Publish(u64),
    Draw { size: usize, drawn: Vec<u64>, ended: Ended },
    LiftWatermark,
    Close,
}

pub struct Model {
    config: BufferConfig,
    /// The run itself, and restored buffers that do what it does: none may tell itself from the others.
    subjects: Vec<Subject>,
    /// Samples that were lent by buffers which are gone.
    orphans: Vec<Sample>,
    next: u64,
    /// Population in order of arrival.
    population: VecDeque<u64>,
    seen: BTreeSet<u64>,
    /// Deliveries of every sample ever published.
    deliveries: BTreeMap<u64, u32>,
    /// Deliveries still owed by the end.
    owed: Option<BTreeMap<u64, u32>>,
    /// The end has handed out a ticket.
    draining: bool,
    pauses: usize,
    lifted: bool,
    failed: bool,
    /// Since the cut that is held, if one is.
    deeds: Option<Vec<Deed>>,
}

impl Model {
    pub fn new(config: BufferConfig) -> Self {
        Self {
            subjects: vec![Subject::new(&config)],
            config,
            orphans: Vec::new(),
            next: 0,
            population: VecDeque::new(),
            seen: BTreeSet::new(),
            deliveries: BTreeMap::new(),
            owed: None,
            draining: false,
            pauses: 0,
            lifted: false,
            failed: false,
            deeds: None,
        }
    }

    /// The next run, of the same configuration but for the seed.
    pub fn renew(self, seed: u64) -> Self {
        let config = BufferConfig { seed, ..self.config.clone() };
        self.finish();
        Self::new(config)
    }

    fn closed(&self) -> bool {
        self.owed.is_some()
    }

    fn owed(&self) -> usize {
        self.owed.iter().flat_map(BTreeMap::values).sum::<u32>() as usize
    }

    fn keeps(&self) -> bool {
        matches!(self.config.kind, Kind::Reservoir | Kind::BatchReservoir)
    }

    fn needed(&self) -> usize {
        let least = if self.config.kind == Kind::BatchReservoir { self.config.batch_size } else { 1 };
        match self.config.kind {
            Kind::Firo if self.config.pseudo_epochs > 1 => usize::MAX,
            _ if self.lifted => least,
            Kind::Fifo => 1,
            Kind::Firo => self.config.watermark + 1,
            _ => self.config.watermark.max(least),
        }
    }

    fn full(&self) -> bool {
        self.population.len() == self.config.capacity
    }

    fn has_room(&self) -> bool {
        !self.full() || (self.keeps() && self.population.iter().any(|number| self.seen.contains(number)))
    }

    fn may_publish(&self) -> bool {
        self.pauses == 0 && !self.closed() && !self.failed && self.has_room()
    }

    fn note(&mut self, deed: Deed) {
        if let Some(deeds) = &mut self.deeds {
            deeds.push(deed);
        }
    }

    pub fn publish(&mut self) {
        let number = self.next;
        let population = &self.population;
        let mut prepared = true;
        for subject in &mut self.subjects {
            let may = subject.waiting.is_some() || subject.has_free_slot(population.iter().copied());
            assert_eq!(subject.prepare(number), may, "a slot is free unless somebody uses it");
            prepared &= may;
        }
        if !prepared {
            // In none of them, so that they go on doing the same.
            self.give_up();
            return count("publishes without a slot");
        }
        let may = self.may_publish();
        let overfull = self.config.pseudo_epochs > 1 && self.full() && self.pauses == 0 && !self.closed();
        for subject in &mut self.subjects {
            assert_eq!(
                subject.publish(number),
                may,
                "a sample is published when there is room, and then only"
            );
        }
        if overfull {
            let text = |subject: &Subject| subject.buffer.failure().map(str::to_string);
            assert!(
                self.subjects
                    .iter()
                    .all(|subject| text(subject).is_some_and(|t| t.contains("pseudo_epochs")))
            );
            self.failed = true;
            return count("failures");
        }
        if !may {
            return count("publishes refused");
        }
        count("publishes");
        let full = self.full();
        self.next += 1;
        self.note(Deed::Publish(number));
        self.deliveries.insert(number, 0);
        let before: BTreeSet<u64> = self.population.iter().copied().collect();
        self.population.push_back(number);
        if full {
            let now: BTreeSet<u64> = self.subjects[0].peeked().into_iter().collect();
            assert!(now.contains(&number));
            let gone: Vec<u64> = before.difference(&now).copied().collect();
            assert_eq!(gone.len(), 1, "one sample makes room");
            assert!(self.seen.contains(&gone[0]), "no sample is evicted unseen");
            self.population.retain(|sample| *sample != gone[0]);
            count("evictions");
        }
    }

    pub fn give_up(&mut self) {
        for subject in &mut self.subjects {
            subject.waiting = None;
            subject.lacks_room = false;
        }
    }

    /// Samples that a draw of `size` gives now, and how it ends.
    fn expected(&self, size: usize) -> (usize, Ended) {
        let (population, needed) = (self.population.len(), self.needed());
        if self.failed {
            return (0, Ended::Failed);
        }
        if self.closed() {
            let drawn = size.min(self.owed());
            return (drawn, if drawn == 0 { Ended::EndOfData } else { Ended::Filled });
        }
        let drawn = match self.config.kind {
            _ if population < needed => 0,
            Kind::Fifo | Kind::Firo => size.min(population - needed + 1),
            Kind::Reservoir => size,
            Kind::BatchReservoir => return (size.min(population), Ended::Filled),
        };
        (drawn, if drawn < size { Ended::Timeout } else { Ended::Filled })
    }

    pub fn draw(&mut self, size: usize, hold: bool) {
        let (nb_expected, expected_end) = self.expected(size);
        let draws: Vec<_> = self.subjects.iter_mut().map(|subject| subject.draw(size, hold)).collect();
        for draw in &draws {
            assert_eq!(*draw, draws[0], "a restored buffer draws what the other draws");
        }
        let (drawn, ended) = draws.into_iter().next().expect("a subject");
        assert_eq!((drawn.len(), ended), (nb_expected, expected_end));
        if self.config.kind == Kind::BatchReservoir && !self.closed() {
            let distinct: BTreeSet<&u64> = drawn.iter().collect();
            assert_eq!(distinct.len(), drawn.len(), "a batch without repeats");
        }
        if !self.failed {
            self.draining |= self.closed();
            self.note(Deed::Draw { size, drawn: drawn.clone(), ended });
        }
        for number in drawn {
            self.delivered(number);
        }
    }

    fn delivered(&mut self, number: u64) {
        count("draws");
        assert!(self.population.contains(&number), "what is delivered is in the population");
        if self.config.kind == Kind::Fifo {
            assert_eq!(self.population.front(), Some(&number), "order of FIFO is exact");
        }
        self.seen.insert(number);
        *self.deliveries.get_mut(&number).expect("a sample that was published") += 1;
        let leaves = match &mut self.owed {
            Some(owed) => {
                let left = owed.get_mut(&number).expect("the end delivers what is left, and that only");
                *left -= 1;
                let last = *left == 0;
                if last {
                    owed.remove(&number);
                }
                last
            }
            None => !self.keeps(),
        };
        if leaves {
            self.population.retain(|sample| *sample != number);
        }
    }

    pub fn let_go(&mut self, index: usize) {
        for subject in &mut self.subjects {
            subject.let_go(index);
        }
    }

    pub fn pause(&mut self) {
        self.subjects.iter().for_each(|subject| subject.buffer.pause());
        self.pauses += 1;
    }

    pub fn resume(&mut self) {
        self.subjects.iter().for_each(|subject| subject.buffer.resume());
        self.pauses = self.pauses.saturating_sub(1);
    }

    pub fn lift_watermark(&mut self) {
        self.subjects.iter().for_each(|subject| subject.buffer.lift_watermark());
        self.lifted = true;
        self.note(Deed::LiftWatermark);
    }

    pub fn close(&mut self) {
        self.subjects.iter().for_each(|subject| subject.buffer.close());
        let passes = self.config.pseudo_epochs;
        let population = &self.population;
        self.owed.get_or_insert_with(|| population.iter().map(|number| (*number, passes)).collect());
        self.note(Deed::Close);
    }

    pub fn cut(&mut self) {
        if self.failed {
            let buffer = &self.subjects[0].buffer;
            assert!(matches!(buffer.snapshot(), Err(BufferError::Failed(_))));
            return;
        }
        let states: Vec<SnapshotState> =
            self.subjects.iter_mut().map(|subject| subject.open_cut().clone()).collect();
        for state in &states {
            assert_eq!(*state, states[0], "a restored buffer is in the state of the other");
        }
        self.check_state(&states[0]);
        self.deeds = Some(Vec::new());
    }

    /// The state says what the model knows.
    fn check_state(&self, state: &SnapshotState) {
        let numbers: Vec<u64> = state.samples.iter().map(|sample| sample.time_step).collect();
        assert_eq!(numbers, self.subjects[0].peeked());
        for sample in &state.samples {
            assert_eq!(sample.deliveries, self.deliveries[&sample.time_step]);
        }
        let evictable: BTreeSet<u64> = state.evictable.iter().map(|&index| numbers[index as usize]).collect();
        assert_eq!(evictable.len(), state.evictable.len());
        if self.keeps() && !self.draining {
            assert_eq!(evictable, numbers.iter().copied().filter(|n| self.seen.contains(n)).collect());
        }
        assert_eq!((state.closed, state.published), (self.closed(), self.next));
        assert_eq!(state.drawn, self.drawn());
        let has_drain = self.keeps() || self.config.pseudo_epochs > 1;
        assert_eq!(state.drain.is_some(), has_drain && self.draining);
    }

    fn drawn(&self) -> u64 {
        self.deliveries.values().map(|&times| u64::from(times)).sum()
    }

    pub fn save(&mut self, count: usize) {
        for cut in self.subjects.iter_mut().filter_map(|subject| subject.cut.as_mut()) {
            cut.save(count);
        }
    }

    pub fn forget(&mut self) {
        self.subjects.iter_mut().for_each(|subject| subject.cut = None);
        self.deeds = None;
    }

    pub fn restart(&mut self, beside: bool) {
        if self.deeds.is_none() {
            self.cut();
        }
        let cut = self.subjects[0].cut.take().filter(|_| !self.failed);
        let deeds = self.deeds.take().unwrap_or_default();
        self.forget();
        let Some(cut) = cut else { return };
        count(if deeds.is_empty() { "restarts at once" } else { "restarts with a replay" });
        let mut restored = Subject::restored(&self.config, cut);
        for deed in deeds {
            match deed {
                Deed::Publish(number) => assert!(restored.prepare(number) && restored.publish(number)),
                Deed::Draw { size, drawn, ended } => assert_eq!(
                    restored.draw(size, false),
                    (drawn, ended),
                    "after a restart, the draws are those of the uninterrupted run"
                ),
                Deed::LiftWatermark => restored.buffer.lift_watermark(),
                Deed::Close => restored.buffer.close(),
            }
        }
        for _ in 0..self.pauses {
            restored.buffer.pause();
        }
        if !beside {
            count("kills");
            // What was lent stays whole when its buffer is gone.
            self.orphans.extend(self.subjects.drain(..).flat_map(|subject| subject.held));
            self.orphans.drain(..self.orphans.len().saturating_sub(4));
        } else if self.subjects.len() == MOST_SUBJECTS {
            self.subjects.remove(1);
        }
        self.subjects.push(restored);
        let states = self.subjects.iter().map(|subject| subject.buffer.snapshot().expect("a snapshot").state);
        let states: Vec<SnapshotState> = states.collect();
        assert!(
            states.iter().all(|state| *state == states[0]),
            "a replay ends in the same state: {states:?}"
        );
        self.check_state(&states[0]);
    }

    pub fn check_invariants(&self) {
        let order = self.subjects[0].peeked();
        let population: Vec<u64> = self.population.iter().copied().collect();
        let sorted = |numbers: &[u64]| numbers.iter().copied().collect::<BTreeSet<u64>>();
        assert_eq!(order.len(), population.len());
        assert_eq!(sorted(&order), sorted(&population), "no sample vanishes unseen");
        if self.config.kind == Kind::Fifo {
            assert_eq!(order, population);
        }
        let deliveries: Vec<u32> = order.iter().map(|number| self.deliveries[number]).collect();
        for subject in &self.subjects {
            let buffer = &subject.buffer;
            assert!(buffer.population() <= self.config.capacity);
            assert_eq!(buffer.population(), population.len());
            assert_eq!(subject.peeked(), order);
            assert_eq!(buffer.deliveries(), deliveries);
            assert_eq!(buffer.is_closed(), self.closed());
            let metrics = buffer.metrics();
            assert_eq!((metrics.published, metrics.drawn), (self.next, self.drawn()));
            // Views never change under the user, whatever happened since they were lent.
            subject.held.iter().for_each(|sample| assert!(number_of(sample) < self.next));
            let woken = subject.woken.load(Ordering::Relaxed);
            let slot = subject.has_free_slot(population.iter().copied());
            assert!(
                woken || !(subject.lacks_slot && slot),
                "a slot that was refused is told of when it is free"
            );
            assert!(woken || !(subject.lacks_room && self.may_publish()), "room that was refused is told of");
        }
        self.orphans.iter().for_each(|sample| assert!(number_of(sample) < self.next));
    }

    /// However the schedule ended: after the end of reception each sample that is left is delivered, and then no more.
    pub fn finish(mut self) {
        if self.failed {
            return;
        }
        self.close();
        for _ in 0..self.owed() {
            self.draw(1, false);
        }
        for subject in &self.subjects {
            assert!(matches!(subject.buffer.get(Some(Instant::now())), Err(BufferError::EndOfData)));
        }
        self.check_invariants();
        for times in self.deliveries.values() {
            assert!(*times >= 1, "every sample is delivered");
            assert!(self.keeps() || *times == self.config.pseudo_epochs);
        }
        count("ends");
    }
}
