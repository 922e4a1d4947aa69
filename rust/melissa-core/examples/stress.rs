//! Buffers and sessions under as many threads as will get into each other's way, for ThreadSanitizer and for whoever
//! wants to see them run: `ci/verify/tsan.sh`.
//!
//! One round of a buffer has a receiver that fills slots, a `put` beside it, samplers that gather batches, borrow
//! samples, hold them and look at the population, a prefetcher with its consumer, and somebody who pauses, resumes and
//! lifts the watermark. One round of a session has clients on the loopback interface, one of which dies in the middle
//! of a body and comes back. Every byte of a payload says which sample it is of, every sample that was published must be
//! delivered, and the threads end with the end of data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../tests/session/client.rs"]
#[allow(dead_code)]
mod client;

use client::{Client, Identity, KEY, PATIENCE};
use melissa_core::batch::{Batch, BatchLayout, BatchPool};
use melissa_core::buffer::{Buffer, BufferConfig, Kind, LentBatch, Sample, SampleKey, SlotWriter};
use melissa_core::error::BufferError;
use melissa_core::ledger::Reason;
use melissa_core::prefetch::Prefetcher;
use melissa_core::schema::{Dtype, Field, Schema};
use melissa_core::session::{DataType, Session, SessionConfig};
use melissa_core::wire::auth::StudyKey;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const HELP: &str = "\
Runs rounds of concurrent work on training buffers and sessions, and checks every payload.

  --seconds N  begin no round after N seconds (default 5); each kind of buffer has one round at least
  --samples N  samples of one round of a buffer (default 2000)
  --seed N     seed of the buffers' draws (default 1)
  --race       plant a race: a thread writes to a published sample while another reads it (a check of the checker)
  --help       this text
";

/// A rank of two sends half of each, in whole stamps.
const FIELDS: [(&str, Dtype, u64); 2] = [("u", Dtype::F64, 96), ("mask", Dtype::U8, 48)];
const BATCH: usize = 4;

struct Options {
    seconds: u64,
    samples: u64,
    seed: u64,
    race: bool,
}

impl Options {
    fn read() -> Result<Option<Self>, String> {
        let mut options = Self { seconds: 5, samples: 2000, seed: 1, race: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || {
                let text = words.next().ok_or_else(|| format!("{word} needs a number"))?;
                text.parse::<u64>().map_err(|_| format!("{word} needs a number, and \"{text}\" came"))
            };
            match word.as_str() {
                "--seconds" => options.seconds = number()?,
                "--samples" => options.samples = number()?,
                "--seed" => options.seed = number()?,
                "--race" => options.race = true,
                "--help" | "-h" => return Ok(None),
                other => return Err(format!("no option {other}; --help says which there are")),
            }
        }
        Ok(Some(options))
    }
}

/// What was done, for the eye: a stress that does little proves little.
#[derive(Default)]
struct Figures {
    published: AtomicU64,
    delivered: AtomicU64,
    views: AtomicU64,
    copies: AtomicU64,
    peeks: AtomicU64,
    batches: AtomicU64,
    refused_publications: AtomicU64,
    slots_given_back: AtomicU64,
    pauses: AtomicU64,
    received: AtomicU64,
}

fn add(figure: &AtomicU64, count: usize) {
    figure.fetch_add(count as u64, Ordering::Relaxed);
}

/// The eight bytes that the payload of a sample consists of.
fn stamp(key: SampleKey) -> [u8; 8] {
    let number = (u64::from(key.simulation) << 32 | key.time_step) + 1;
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes()
}

fn fill(bytes: &mut [u8], key: SampleKey) {
    let stamp = stamp(key);
    bytes.iter_mut().zip(stamp.iter().cycle()).for_each(|(byte, &value)| *byte = value);
}

fn check_bytes(bytes: &[u8], key: SampleKey) {
    let stamp = stamp(key);
    assert!(bytes.chunks(8).all(|chunk| chunk == &stamp[..chunk.len()]), "a torn payload of {key:?}");
}

fn check_sample(sample: &Sample) -> SampleKey {
    let key = sample.key();
    for field in 0..FIELDS.len() {
        check_bytes(sample.field_bytes(field), key);
    }
    assert_eq!(sample.parameters(), [f64::from(key.simulation)]);
    key
}

fn check_batch(batch: &Batch) {
    for (field, &(_, dtype, elements)) in FIELDS.iter().enumerate() {
        let row_bytes = elements as usize * dtype.size();
        for (row, &key) in batch.keys().iter().enumerate() {
            // SAFETY: the batch has this row, and nobody writes to it while it is borrowed.
            let bytes =
                unsafe { std::slice::from_raw_parts(batch.field_ptr(field).add(row * row_bytes), row_bytes) };
            check_bytes(bytes, key);
        }
    }
    for (row, key) in batch.keys().iter().enumerate() {
        // SAFETY: as above; rows of inputs are two float64.
        let inputs = unsafe { std::slice::from_raw_parts(batch.inputs_ptr().cast::<f64>().add(2 * row), 2) };
        assert_eq!(inputs, [f64::from(key.simulation), key.time_step as f64]);
    }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

/// How often each sample was delivered.
struct Deliveries {
    times: Vec<AtomicU32>,
    /// Numbers of a simulation's samples.
    steps: u64,
}

impl Deliveries {
    fn new(simulations: u32, steps: u64) -> Self {
        let samples = u64::from(simulations) * steps;
        Self { times: (0..samples).map(|_| AtomicU32::new(0)).collect(), steps }
    }

    fn count(&self, key: SampleKey) {
        let number = u64::from(key.simulation) * self.steps + key.time_step;
        self.times[number as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Every sample came out, and no more than once where samples do not stay.
    fn check(&self, kind: Kind) -> u64 {
        let once = matches!(kind, Kind::Fifo | Kind::Firo);
        let mut sum = 0;
        for (number, times) in self.times.iter().enumerate() {
            let times = times.load(Ordering::Relaxed);
            let right = if once { times == 1 } else { times >= 1 };
            assert!(right, "{kind:?}: sample {number} was delivered {times} times");
            sum += u64::from(times);
        }
        sum
    }
}

/// What all threads of a round share.
struct Round {
    buffer: Arc<Buffer>,
    deliveries: Deliveries,
    figures: Arc<Figures>,
    /// "Room wanted" was answered.
    room: AtomicBool,
    over: AtomicBool,
}

/// How a sampler takes samples.
#[derive(Clone, Copy)]
enum Taking {
    Gather,
    Lent,
    LentBatch,
    Prefetched,
}

impl Round {
    fn delivered(&self, keys: impl IntoIterator<Item = SampleKey>) {
        for key in keys {
            self.deliveries.count(key);
            add(&self.figures.delivered, 1);
        }
    }

    /// Takes samples to the end of data; `trained` hears of each batch.
    fn sample(&self, taking: Taking, trained: impl Fn(&[SampleKey])) {
        let buffer = &self.buffer;
        assert!(buffer.wait_ready(soon()).unwrap(), "no data came");
        let pool = Arc::<BatchPool>::default();
        let prefetcher = matches!(taking, Taking::Prefetched)
            .then(|| Prefetcher::start(Arc::clone(buffer), BATCH, 2, false).unwrap());
        let mut held = VecDeque::new();
        loop {
            let result = match taking {
                Taking::Gather => {
                    let layout = BatchLayout::new(buffer.schema().unwrap(), BATCH);
                    let mut batch = Batch::new(&pool, layout).unwrap();
                    buffer.gather(&mut batch, soon()).map(|()| {
                        check_batch(&batch);
                        batch.keys().to_vec()
                    })
                }
                Taking::Lent => buffer.get(soon()).map(|sample| {
                    let key = check_sample(&sample);
                    add(if sample.is_copy() { &self.figures.copies } else { &self.figures.views }, 1);
                    // Held for a while: what is pinned must not change.
                    held.push_back(sample);
                    if held.len() > 5 {
                        check_sample(&held.pop_front().unwrap());
                    }
                    vec![key]
                }),
                Taking::LentBatch => {
                    let mut batch = LentBatch::default();
                    let result = buffer.get_batch(&mut batch, BATCH, soon());
                    // Looked at and let go of in another thread.
                    let samples = batch.samples;
                    result.map(|()| {
                        thread::spawn(move || samples.iter().map(check_sample).collect()).join().unwrap()
                    })
                }
                Taking::Prefetched => prefetcher.as_ref().unwrap().next(soon()).map(|batch| {
                    check_batch(&batch);
                    batch.keys().to_vec()
                }),
            };
            match result {
                Ok(keys) => {
                    add(&self.figures.batches, 1);
                    trained(&keys);
                    self.delivered(keys);
                }
                Err(BufferError::EndOfData) => break,
                Err(other) => panic!("a sampler: {other}"),
            }
        }
        held.iter().for_each(|sample| {
            check_sample(sample);
        });
    }

    /// Looks at samples of the population until the round is over.
    fn look(&self) {
        while !self.over.load(Ordering::Acquire) {
            if let Some(sample) = self.buffer.peek(self.buffer.population() / 2) {
                check_sample(&sample);
                add(&self.figures.peeks, 1);
            }
            assert!(self.buffer.deliveries().len() <= self.buffer.config().capacity);
            let _ = (self.buffer.metrics(), self.buffer.remaining());
            thread::yield_now();
        }
    }

    /// Stops and starts publication, and lifts the watermark in the middle of every second round.
    fn disturb(&self, lift: bool) {
        let mut turns = 0;
        while !self.over.load(Ordering::Acquire) {
            self.buffer.pause();
            add(&self.figures.pauses, 1);
            thread::yield_now();
            self.buffer.resume();
            thread::sleep(Duration::from_millis(2));
            turns += 1;
            if lift && turns == 3 {
                self.buffer.lift_watermark();
            }
        }
    }

    /// What a session does, without one: takes slots, fills and publishes them, and never waits for room but by asking
    /// again when it was told.
    fn receive(&self, simulation: u32, steps: u64) {
        let wait = || {
            let start = Instant::now();
            while !self.room.swap(false, Ordering::Acquire) {
                assert!(start.elapsed() < PATIENCE, "room was wanted, and nobody said when it was there");
                thread::sleep(Duration::from_micros(50));
            }
        };
        for time_step in 0..steps {
            let key = SampleKey { simulation, draw: 0, time_step };
            let mut slot = self.slot(&wait);
            if time_step % 17 == 0 {
                // A body that broke off.
                fill(slot.field_bytes_mut(0), key);
                drop(slot);
                add(&self.figures.slots_given_back, 1);
                slot = self.slot(&wait);
            }
            for field in 0..FIELDS.len() {
                fill(slot.field_bytes_mut(field), key);
            }
            while let Err(back) = self.buffer.publish(slot, key, &[f64::from(simulation)]) {
                add(&self.figures.refused_publications, 1);
                slot = back;
                wait();
            }
            add(&self.figures.published, 1);
        }
    }

    fn slot(&self, wait: &impl Fn()) -> SlotWriter {
        loop {
            match self.buffer.take_slot() {
                Some(slot) => return slot,
                None => wait(),
            }
        }
    }

    /// Puts samples as Python does.
    fn put(&self, simulation: u32, steps: u64) {
        let mut bodies = FIELDS.map(|(_, dtype, elements)| vec![0; elements as usize * dtype.size()]);
        for time_step in 0..steps {
            let key = SampleKey { simulation, draw: 0, time_step };
            bodies.iter_mut().for_each(|body| fill(body, key));
            let fields = [&bodies[0][..], &bodies[1][..]];
            self.buffer.put(key, &fields, &[f64::from(simulation)], soon()).unwrap();
            add(&self.figures.published, 1);
        }
    }
}

fn configuration(kind: Kind, seed: u64) -> BufferConfig {
    BufferConfig {
        kind,
        capacity: 12,
        watermark: 5,
        pseudo_epochs: 1,
        batch_size: BATCH,
        seed,
        assembly_slots: 4,
        lent_slots: Some(3),
    }
}

fn round(kind: Kind, seed: u64, figures: &Arc<Figures>) -> Round {
    Round {
        buffer: Arc::new(Buffer::new(configuration(kind, seed)).unwrap()),
        deliveries: Deliveries::new(0, 0),
        figures: Arc::clone(figures),
        room: AtomicBool::new(false),
        over: AtomicBool::new(false),
    }
}

/// One round of a buffer by itself: two who publish, four who take, and two who get in the way.
fn buffer_round(kind: Kind, seed: u64, samples: u64, figures: &Arc<Figures>) {
    let steps = samples / 2;
    let round = Arc::new(Round { deliveries: Deliveries::new(2, steps), ..round(kind, seed, figures) });
    let waker = Arc::downgrade(&round);
    round.buffer.set_room_waker(Arc::new(move || {
        if let Some(round) = waker.upgrade() {
            round.room.store(true, Ordering::Release);
        }
    }));
    thread::scope(|scope| {
        let spawn = |work: Box<dyn FnOnce(&Round) + Send>| {
            let round = Arc::clone(&round);
            scope.spawn(move || work(&round))
        };
        let takers = [Taking::Gather, Taking::Lent, Taking::LentBatch, Taking::Prefetched]
            .map(|taking| spawn(Box::new(move |round| round.sample(taking, |_| {}))));
        let others = [
            spawn(Box::new(Round::look)),
            spawn(Box::new(move |round| round.disturb(seed.is_multiple_of(2)))),
        ];
        // The samplers wait for a buffer that knows no schema yet.
        let fields =
            FIELDS.map(|(name, dtype, size)| Field { name: name.into(), dtype, size: size as usize });
        round.buffer.bind(Arc::new(Schema::new(fields.to_vec(), 1).unwrap())).unwrap();
        let writers = [
            spawn(Box::new(move |round| round.receive(0, steps))),
            spawn(Box::new(move |round| round.put(1, steps))),
        ];
        writers.into_iter().for_each(|thread| thread.join().unwrap());
        round.buffer.close();
        takers.into_iter().for_each(|thread| thread.join().unwrap());
        round.over.store(true, Ordering::Release);
        others.into_iter().for_each(|thread| thread.join().unwrap());
    });
    round.deliveries.check(kind);
    assert_eq!(round.buffer.population(), 0);
}

/// Steps of each simulation of a session's round.
const STEPS: u64 = 60;
const SIMULATIONS: u32 = 4;

/// One rank's steps; `dies_at` breaks off in the middle of that step.
fn stream(address: &str, who: Identity, dies_at: Option<u64>) {
    let size = u64::from(who.size);
    let mut client = Client::connect(address, who).unwrap();
    let welcome = client.join(&FIELDS.map(|(name, dtype, count)| (name, dtype, count / size))).unwrap();
    let complete = |step| welcome.complete.iter().any(|&(first, last)| (first..=last).contains(&step));
    for time_step in (0..STEPS).filter(|&step| !complete(step)) {
        let key = SampleKey { simulation: client.who.simulation, draw: 0, time_step };
        for (field, (_, dtype, elements)) in FIELDS.iter().enumerate() {
            let mut body = vec![0; (elements / size) as usize * dtype.size()];
            fill(&mut body, key);
            if dies_at == Some(time_step) {
                let header = client.header(field, time_step, elements / size).encode();
                client.write(&[&header[..], &body[..body.len() / 2]].concat());
                return;
            }
            assert!(client.send(field, time_step, &body), "the session hung up on {key:?}");
        }
    }
    client.finalize(STEPS).unwrap();
}

/// One round of a session: four simulations, of which one has two ranks and one dies and starts anew.
fn session_round(kind: Kind, seed: u64, figures: &Arc<Figures>) {
    let round =
        Arc::new(Round { deliveries: Deliveries::new(SIMULATIONS, STEPS), ..round(kind, seed, figures) });
    let config = SessionConfig {
        data_type: DataType::AsSent,
        simulation_timeout: Some(PATIENCE),
        nb_time_steps: Some(STEPS),
        ..SessionConfig::new(
            StudyKey::from_bytes(&KEY).unwrap(),
            1,
            FIELDS.map(|field| field.0.to_owned()).to_vec(),
            1,
            SIMULATIONS,
        )
    };
    let session = Arc::new(Session::start(config, Arc::clone(&round.buffer)).unwrap());
    thread::scope(|scope| {
        let takers = [Taking::Gather, Taking::Lent, Taking::Prefetched].map(|taking| {
            let (round, session) = (Arc::clone(&round), Arc::clone(&session));
            scope.spawn(move || {
                round.sample(taking, |keys| {
                    session.mark_trained(keys.iter().copied());
                });
            })
        });
        let others = [
            {
                let round = Arc::clone(&round);
                scope.spawn(move || round.look())
            },
            {
                let (round, session) = (Arc::clone(&round), Arc::clone(&session));
                // The control plane.
                scope.spawn(move || {
                    while !round.over.load(Ordering::Acquire) {
                        session.changes(Duration::from_millis(1)).unwrap();
                        let _ = (session.counters(), session.ledger_sums(), session.refusals());
                    }
                })
            },
        ];
        let clients: Vec<_> = (0..SIMULATIONS)
            .flat_map(|simulation| {
                session.register(simulation, 1, 0, vec![f64::from(simulation)]).unwrap();
                let size = if simulation == 1 { 2 } else { 1 };
                (0..size).map(move |rank| (simulation, rank, size))
            })
            .map(|(simulation, rank, size)| {
                let session = Arc::clone(&session);
                scope.spawn(move || {
                    let who = Identity::of(simulation).rank(rank, size);
                    if simulation == 2 {
                        stream(session.address(), who.clone(), Some(STEPS / 2));
                        session.register(simulation, 2, 0, vec![f64::from(simulation)]).unwrap();
                        stream(session.address(), who.attempt(2), None);
                    } else {
                        stream(session.address(), who, None);
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|thread| thread.join().unwrap());
        let start = Instant::now();
        while !(session.reception_over() && round.buffer.population() == 0) {
            assert!(start.elapsed() < PATIENCE, "reception never ends: {:?}", session.counters());
            thread::sleep(Duration::from_millis(1));
        }
        takers.into_iter().for_each(|thread| thread.join().unwrap());
        round.over.store(true, Ordering::Release);
        others.into_iter().for_each(|thread| thread.join().unwrap());
    });
    round.deliveries.check(kind);
    let samples = u64::from(SIMULATIONS) * STEPS;
    let sums = session.close_ledger(Reason::Untrained);
    assert_eq!((sums.complete, sums.trained, sums.open()), (samples, samples, 0), "{sums:?}");
    add(&figures.received, session.counters().samples_received as usize);
    session.close();
}

/// A thread writes to a sample that is published while another reads it: what must never happen, made to happen.
fn plant_race(figures: &Arc<Figures>) {
    let round = round(Kind::Fifo, 0, figures);
    let fields = FIELDS.map(|(name, dtype, size)| Field { name: name.into(), dtype, size: size as usize });
    round.buffer.bind(Arc::new(Schema::new(fields.to_vec(), 1).unwrap())).unwrap();
    let key = SampleKey { simulation: 0, draw: 0, time_step: 0 };
    let mut slot = round.buffer.take_slot().unwrap();
    (0..FIELDS.len()).for_each(|field| fill(slot.field_bytes_mut(field), key));
    let address = slot.field_bytes_mut(0).as_mut_ptr() as usize;
    round.buffer.publish(slot, key, &[0.0]).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| check_sample(&round.buffer.get(soon()).unwrap()));
        let writer = scope.spawn(move || {
            // SAFETY: none; this is the race that is planted. The byte keeps its value, so that only a checker sees it.
            unsafe { (address as *mut u8).write_volatile(stamp(key)[0]) };
        });
        writer.join().unwrap();
        reader.join().unwrap();
    });
}

fn main() {
    let options = match Options::read() {
        Ok(Some(options)) => options,
        Ok(None) => return print!("{HELP}"),
        Err(text) => {
            println!("{text}");
            std::process::exit(2);
        }
    };
    // The others would wait for whoever panicked.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101);
    }));
    let figures = Arc::new(Figures::default());
    if options.race {
        plant_race(&figures);
        return println!("a race was planted");
    }
    let start = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || start.elapsed() < Duration::from_secs(options.seconds) {
        for kind in Kind::ALL {
            buffer_round(kind, options.seed + rounds, options.samples, &figures);
            session_round(kind, options.seed + rounds, &figures);
        }
        rounds += 1;
    }
    let figure = |name: &str, value: &AtomicU64| println!("{name:<32}{:>10}", value.load(Ordering::Relaxed));
    println!("{:<32}{rounds:>10}", "rounds of every kind");
    println!("{:<32}{:>10.1}", "seconds", start.elapsed().as_secs_f64());
    figure("samples put and published", &figures.published);
    figure("samples received by sessions", &figures.received);
    figure("samples delivered", &figures.delivered);
    figure("batches and single gets", &figures.batches);
    figure("views held", &figures.views);
    figure("copies held", &figures.copies);
    figure("samples looked at", &figures.peeks);
    figure("publications refused for room", &figures.refused_publications);
    figure("slots given back unpublished", &figures.slots_given_back);
    figure("pauses", &figures.pauses);
}
