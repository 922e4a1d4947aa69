//! The laws of the training buffers (docs/architecture.md) as a state machine: random schedules of publishes, draws,
//! held views, pauses and the end of reception, against a plain model of what the population must be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use melissa_core::buffer::{Buffer, BufferConfig, Kind, LentBatch, Sample, SampleKey};
use melissa_core::error::BufferError;
use melissa_core::schema::{Dtype, Field, Schema};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

const ELEMENTS: usize = 9;

fn schema() -> Arc<Schema> {
    let field = |name: &str, dtype, size| Field { name: name.into(), dtype, size };
    Arc::new(
        Schema::new(vec![field("u", Dtype::F64, ELEMENTS), field("v", Dtype::U8, 3)], 2).expect("a schema"),
    )
}

fn key(number: u64) -> SampleKey {
    SampleKey { simulation: (number / 7) as u32, draw: (number % 3) as u32, time_step: number }
}

/// Fills a slot with what only sample `number` holds, and publishes it; false when there was no slot or room.
fn publish(buffer: &Buffer, number: u64) -> bool {
    let Some(mut slot) = buffer.take_slot() else { return false };
    for chunk in slot.field_bytes_mut(0).chunks_exact_mut(8) {
        chunk.copy_from_slice(&(number as f64).to_ne_bytes());
    }
    slot.field_bytes_mut(1).fill(number as u8);
    buffer.publish(slot, key(number), &[number as f64, -1.0]).is_ok()
}

/// The sample is whole and is the one that its key says.
fn number_of(sample: &Sample) -> u64 {
    let number = sample.key().time_step;
    assert_eq!(sample.key(), key(number));
    assert_eq!(sample.parameters(), [number as f64, -1.0]);
    assert!(sample.field_bytes(0).chunks_exact(8).all(|chunk| chunk == (number as f64).to_ne_bytes()));
    assert_eq!(sample.field_bytes(1), [number as u8; 3]);
    number
}

#[derive(Clone, Debug)]
struct Plan {
    config: BufferConfig,
    closed: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Publish,
    Draw { hold: bool },
    DrawBatch(usize),
    LetGo(usize),
    Pause,
    Resume,
    LiftWatermark,
    Close,
}

impl ReferenceStateMachine for Plan {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        (0..4usize, 1..12usize, 0..12usize, 1..4u32, 1..4usize, 1..3usize, 1..4usize, any::<u64>())
            .prop_map(|(kind, capacity, watermark, passes, batch, assembly, lent, seed)| {
                let kind = Kind::ALL[kind];
                let watermark = match kind {
                    Kind::Firo => watermark % capacity,
                    _ => watermark % (capacity + 1),
                };
                let config = BufferConfig {
                    kind,
                    capacity,
                    watermark,
                    pseudo_epochs: if kind == Kind::Firo { passes } else { 1 },
                    batch_size: batch.min(capacity),
                    seed,
                    assembly_slots: assembly,
                    lent_slots: Some(lent),
                };
                Self { config, closed: false }
            })
            .boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        let passes = state.config.pseudo_epochs > 1;
        prop_oneof![
            8 => Just(Step::Publish),
            8 => any::<bool>().prop_map(|hold| Step::Draw { hold }),
            3 => (1..5usize).prop_map(Step::DrawBatch),
            3 => (0..4usize).prop_map(Step::LetGo),
            1 => Just(Step::Pause),
            2 => Just(Step::Resume),
            u32::from(!passes) => Just(Step::LiftWatermark),
            1 => Just(Step::Close),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.closed |= matches!(step, Step::Close);
        state
    }
}

struct Model {
    config: BufferConfig,
    buffer: Buffer,
    next: u64,
    /// Population in order of arrival.
    population: VecDeque<u64>,
    seen: BTreeSet<u64>,
    /// Deliveries of every sample ever published.
    deliveries: BTreeMap<u64, u32>,
    /// Deliveries still owed by a drain.
    owed: Option<BTreeMap<u64, u32>>,
    held: Vec<Sample>,
    pauses: usize,
    lifted: bool,
    failed: bool,
}

impl Model {
    fn closed(&self) -> bool {
        self.owed.is_some()
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

    fn may_publish(&self) -> bool {
        self.pauses == 0
            && !self.closed()
            && (self.population.len() < self.config.capacity
                || (self.keeps() && self.population.iter().any(|number| self.seen.contains(number))))
    }

    fn keeps(&self) -> bool {
        matches!(self.config.kind, Kind::Reservoir | Kind::BatchReservoir)
    }

    fn publish(&mut self) {
        let number = self.next;
        let may = self.may_publish();
        let overfull = self.config.pseudo_epochs > 1
            && self.population.len() == self.config.capacity
            && self.pauses == 0
            && !self.closed();
        let full = self.population.len() == self.config.capacity;
        // One writer, which gives its slot back at once: an assembly slot is always there.
        assert_eq!(publish(&self.buffer, number), may, "publish");
        if overfull {
            assert!(self.buffer.failure().is_some_and(|text| text.contains("pseudo_epochs")));
            self.failed = true;
        }
        if may {
            self.next += 1;
            self.deliveries.insert(number, 0);
            let before: BTreeSet<u64> = self.population.iter().copied().collect();
            self.population.push_back(number);
            if full {
                let now = self.peeked();
                assert!(now.contains(&number));
                let gone: Vec<u64> = before.difference(&now).copied().collect();
                assert_eq!(gone.len(), 1, "one sample makes room");
                assert!(self.seen.contains(&gone[0]), "no sample is evicted unseen");
                self.population.retain(|sample| *sample != gone[0]);
            }
        }
    }

    fn peeked(&self) -> BTreeSet<u64> {
        (0..).map_while(|index| self.buffer.peek(index)).map(|sample| number_of(&sample)).collect()
    }

    fn delivered(&mut self, sample: &Sample) -> u64 {
        let number = number_of(sample);
        assert!(self.population.contains(&number), "what is delivered is in the population");
        if self.config.kind == Kind::Fifo {
            assert_eq!(self.population.front(), Some(&number), "order of FIFO is exact");
        }
        self.seen.insert(number);
        *self.deliveries.get_mut(&number).unwrap() += 1;
        let leaves = match &mut self.owed {
            Some(owed) => {
                let left = owed.get_mut(&number).expect("a drain delivers what is left");
                *left -= 1;
                *left == 0
            }
            None => !self.keeps(),
        };
        if leaves {
            if let Some(owed) = &mut self.owed {
                owed.remove(&number);
            }
            self.population.retain(|sample| *sample != number);
        }
        number
    }

    fn draw_batch(&mut self, size: usize, hold: bool) {
        let mut batch = LentBatch::default();
        let result = self.buffer.get_batch(&mut batch, size, Some(Instant::now()));
        let (closed, ready) = (self.closed(), self.population.len() >= self.needed());
        match &result {
            _ if self.failed => {
                assert!(matches!(result, Err(BufferError::Failed(_))));
                return;
            }
            Err(BufferError::EndOfData) => assert!(closed && self.population.is_empty()),
            Err(BufferError::Timeout) => assert!(!closed),
            Err(other) => panic!("{other}"),
            Ok(()) => assert!(closed || ready),
        }
        if closed || ready {
            assert!(!batch.samples.is_empty() || self.population.is_empty());
        } else {
            assert!(batch.samples.is_empty(), "no sample below the watermark");
        }
        let distinct: BTreeSet<u64> = batch.samples.iter().map(number_of).collect();
        if self.config.kind == Kind::BatchReservoir {
            assert_eq!(distinct.len(), batch.samples.len(), "a batch without repeats");
        }
        for sample in std::mem::take(&mut batch.samples) {
            self.delivered(&sample);
            if hold {
                self.held.push(sample);
            }
        }
    }
}

struct Laws;

impl StateMachineTest for Laws {
    type SystemUnderTest = Model;
    type Reference = Plan;

    fn init_test(plan: &Plan) -> Model {
        let buffer = Buffer::new(plan.config.clone()).expect("a buffer");
        buffer.bind(schema()).expect("a slab");
        Model {
            config: plan.config.clone(),
            buffer,
            next: 0,
            population: VecDeque::new(),
            seen: BTreeSet::new(),
            deliveries: BTreeMap::new(),
            owed: None,
            held: Vec::new(),
            pauses: 0,
            lifted: false,
            failed: false,
        }
    }

    fn apply(mut model: Model, _: &Plan, step: Step) -> Model {
        match step {
            Step::Publish => model.publish(),
            Step::Draw { hold } => model.draw_batch(1, hold),
            Step::DrawBatch(size) => model.draw_batch(size, false),
            Step::LetGo(index) => {
                if !model.held.is_empty() {
                    let sample = model.held.swap_remove(index % model.held.len());
                    number_of(&sample);
                }
            }
            Step::Pause => {
                model.buffer.pause();
                model.pauses += 1;
            }
            Step::Resume => {
                model.buffer.resume();
                model.pauses = model.pauses.saturating_sub(1);
            }
            Step::LiftWatermark => {
                model.buffer.lift_watermark();
                model.lifted = true;
            }
            Step::Close => {
                model.buffer.close();
                let passes = model.config.pseudo_epochs;
                let population = &model.population;
                model.owed.get_or_insert_with(|| population.iter().map(|number| (*number, passes)).collect());
            }
        }
        model
    }

    fn check_invariants(model: &Model, _: &Plan) {
        assert!(model.buffer.population() <= model.config.capacity);
        assert_eq!(model.buffer.population(), model.population.len());
        assert_eq!(model.peeked(), model.population.iter().copied().collect());
        // Views never change under the user, whatever happened since they were lent.
        for sample in &model.held {
            number_of(sample);
        }
        let metrics = model.buffer.metrics();
        assert_eq!(metrics.published, model.next);
        assert_eq!(metrics.drawn, model.deliveries.values().map(|&times| u64::from(times)).sum::<u64>());
    }

    /// However the schedule ended: after the end of reception each sample that is left is delivered, and then no more.
    fn teardown(mut model: Model, _: Plan) {
        if model.failed {
            return;
        }
        model = Self::apply(model, &Plan { config: Self::init_config(), closed: true }, Step::Close);
        let owed: u32 = model.owed.as_ref().unwrap().values().sum();
        for _ in 0..owed {
            let sample = model.buffer.get(Some(Instant::now())).expect("a sample that is left");
            model.delivered(&sample);
        }
        assert!(matches!(model.buffer.get(None), Err(BufferError::EndOfData)));
        let once = model.config.kind == Kind::Fifo || model.config.kind == Kind::Firo;
        for times in model.deliveries.values() {
            assert!(*times >= 1, "every sample is delivered");
            assert!(!once || *times == model.config.pseudo_epochs);
        }
    }
}

impl Laws {
    fn init_config() -> BufferConfig {
        BufferConfig {
            kind: Kind::Fifo,
            capacity: 1,
            watermark: 0,
            pseudo_epochs: 1,
            batch_size: 1,
            seed: 0,
            assembly_slots: 1,
            lent_slots: None,
        }
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_kind_keeps_the_laws_over_random_schedules(sequential 1..120 => Laws);
}
