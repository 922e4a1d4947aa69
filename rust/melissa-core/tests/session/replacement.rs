//! What the model of the assembly (`rust/melissa-verify/tests/assembly_model/`) shows, asked of the real session over real sockets:
//! more simulations than assembly slots, a tiny training buffer that fills, ranks that run ahead of each other,
//! bodies that no socket holds whole, attempts that end in the middle of one and are replaced, and a slow sampler.
//! All of it has to come to its end.

use crate::client::{Answer, Client, Identity};
use crate::study::{Study, bytes_of, check, config, fifo, key};
use melissa_core::buffer::{BufferConfig, Kind, Sample, SampleKey};
use melissa_core::error::BufferError;
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::SessionConfig;
use melissa_core::wire::header::Kind as Frame;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use socket2::SockRef;
use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Elements of the fields over all ranks, for one, two or three of which there are equal shares.
const FIELDS: [(&str, Dtype, u64); 2] = [("temperature", Dtype::F32, 12_000), ("flux", Dtype::F64, 1_200)];
/// Of each socket, on both sides: the smallest share of the first field is twice as long.
const SOCKET_BUFFER: usize = 8 * 1024;
/// Whoever has not come to an end by then waits for ever.
const DEADLINE: Duration = Duration::from_secs(60);
/// No field has elements of these bytes.
const POISON: u8 = 0xee;
/// The code of the refusal that an attempt gets when a higher one is registered.
const REPLACED: &str = "attempt";

/// How an attempt ends before its time.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// A rank dies before it was welcomed.
    Joining { rank: u32 },
    /// A rank dies so far into a field of a step, counted from the first that it sends.
    Dies { rank: u32, step: u64, field: usize, permille: usize },
    /// A rank that is so far is replaced, and writes on.
    Replaced { rank: u32, step: u64, field: usize, permille: usize },
}

#[derive(Clone, Debug)]
struct Scenario {
    kind: Kind,
    capacity: usize,
    watermark: usize,
    assembly_slots: usize,
    steps: u64,
    /// Of each simulation: its ranks, and how its first attempts end.
    simulations: Vec<(u32, Vec<Cut>)>,
    /// The sampler rests so long after a sample.
    rest: Duration,
    /// Samples that the user holds on to.
    hoard: usize,
    /// The study is stopped after so many samples.
    stop_after: Option<usize>,
}

fn cuts() -> impl Strategy<Value = Vec<Cut>> {
    let place = || (0..3u32, 0..3u64, 0..FIELDS.len(), 0..1000usize);
    let cut = prop_oneof![
        1 => (0..3u32).prop_map(|rank| Cut::Joining { rank }),
        3 => place().prop_map(|(rank, step, field, permille)| Cut::Dies { rank, step, field, permille }),
        3 => place().prop_map(|(rank, step, field, permille)| Cut::Replaced { rank, step, field, permille }),
    ];
    prop::collection::vec(cut, 0..3)
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let size = prop_oneof![2 => Just(1u32), 3 => Just(2), 1 => Just(3)];
    let buffer = (prop::bool::ANY, 1..4usize, 1..4usize, 1..3usize);
    let sampling = (0..1500u64, 0..4usize, prop::option::weighted(0.25, 0..12usize));
    let simulations = prop::collection::vec((size, cuts()), 2..7);
    (buffer, 1..6u64, simulations, sampling).prop_map(|(buffer, steps, simulations, sampling)| {
        let (keeps, capacity, watermark, assembly_slots) = buffer;
        let (rest, hoard, stop_after) = sampling;
        Scenario {
            kind: if keeps { Kind::Reservoir } else { Kind::Fifo },
            capacity,
            watermark: if keeps { watermark.min(capacity) } else { 0 },
            assembly_slots,
            steps,
            simulations,
            rest: Duration::from_micros(rest),
            hoard,
            stop_after,
        }
    })
}

/// What a rank has to tell the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Came {
    /// Everything it sent is in memory.
    Finished,
    Died,
    /// It stands in the middle of a body, and goes on when it is replaced.
    Stands,
    /// The server wants nothing more of it.
    Refused,
}

struct World {
    study: Study,
    scenario: Scenario,
    stopped: AtomicBool,
    /// What each thread does, for who has to find out why it does not go on.
    doing: Mutex<HashMap<String, String>>,
    drawn: AtomicUsize,
    /// Ranks that were replaced in the middle of a frame, wrote on, and were told so.
    wrote_on: AtomicUsize,
}

impl World {
    fn note(&self, who: &str, what: String) {
        self.doing.lock().unwrap().insert(who.to_owned(), what);
    }

    /// All that is known of a study that does not come to its end.
    fn describe(&self) -> String {
        let mut text = format!(
            "{:#?}\n{:#?}\n{:?}\n{:?}\n{} samples drawn\n",
            self.scenario,
            self.study.session.counters(),
            self.study.session.ledger_sums(),
            self.study.buffer.metrics(),
            self.drawn.load(Ordering::Relaxed),
        );
        for state in self.study.session.changes(Duration::ZERO).unwrap_or_default() {
            text += &format!("{state:?}\n");
        }
        let doing = self.doing.lock().unwrap();
        let mut lines: Vec<String> = doing.iter().map(|(who, what)| format!("{who}: {what}")).collect();
        lines.sort();
        text + &lines.join("\n")
    }
}

/// One rank of one attempt.
struct Rank {
    world: Arc<World>,
    who: Identity,
    name: String,
    cut: Option<Cut>,
    /// A higher attempt is registered.
    replaced: Arc<AtomicBool>,
}

impl Rank {
    fn note(&self, what: String) {
        self.world.note(&self.name, what);
    }

    fn share(&self, field: usize) -> (u64, u64) {
        let count = FIELDS[field].2 / u64::from(self.who.size);
        (count * u64::from(self.who.rank), count)
    }

    fn run(&self, tell: &dyn Fn(Came)) -> Result<(), Answer> {
        self.note("connects".into());
        let mut client = Client::connect(self.world.study.session.address(), self.who.clone())?;
        SockRef::from(&client.stream).set_send_buffer_size(SOCKET_BUFFER).unwrap();
        let fields: Vec<_> =
            (0..).zip(&FIELDS).map(|(index, &(name, dtype, _))| (name, dtype, self.share(index).1)).collect();
        client.send_join(&fields);
        if matches!(self.cut, Some(Cut::Joining { .. })) {
            tell(Came::Died);
            return Ok(());
        }
        self.note("waits to be welcomed".into());
        let complete = client.read_welcome()?.complete;
        let first = complete.first().map_or(0, |&(first, last)| {
            assert_eq!((first, complete.len()), (0, 1), "steps become complete in order");
            last + 1
        });
        let steps = self.world.scenario.steps;
        for step in first..steps {
            for (field, &(_, dtype, _)) in FIELDS.iter().enumerate() {
                self.note(format!("sends field {field} of step {step}"));
                let (from, count) = self.share(field);
                let sample = key(self.who.simulation, 0, step);
                let header = client.header(field, step, count).encode();
                let body = bytes_of(sample, field, dtype, from, count);
                let cut = self.cut.filter(|&cut| match cut {
                    Cut::Joining { .. } => false,
                    Cut::Dies { step: after, field: of, .. }
                    | Cut::Replaced { step: after, field: of, .. } => {
                        (step, field) == ((first + after).min(steps - 1), of)
                    }
                });
                let Some(cut) = cut else {
                    if !client.write(&[&header[..], &body].concat()) {
                        return Err(client.answer());
                    }
                    continue;
                };
                // Of no use to anybody: wherever one of these bytes comes to light, something has gone wrong.
                let poison = [&header[..], &vec![POISON; body.len()]].concat();
                match cut {
                    Cut::Dies { permille, .. } => {
                        client.write(&poison[..poison.len() * permille / 1000]);
                        tell(Came::Died);
                        return Ok(());
                    }
                    Cut::Replaced { permille, .. } => {
                        let (now, later) = poison.split_at(poison.len() * permille / 1000);
                        if !client.write(now) {
                            return Err(client.answer());
                        }
                        tell(Came::Stands);
                        self.note(format!("stands in field {field} of step {step}"));
                        while !self.replaced.load(Ordering::Acquire) {
                            std::thread::sleep(Duration::from_micros(200));
                        }
                        self.note("writes on after it was replaced".into());
                        client.write(later);
                        let answer = client.answer();
                        let stopped = self.world.stopped.load(Ordering::Acquire);
                        match &answer {
                            Answer::Refused(refused) => {
                                assert!(stopped || refused.code == REPLACED, "{refused:?}");
                                self.world.wrote_on.fetch_add(1, Ordering::Relaxed);
                            }
                            // It read too late to be told why.
                            Answer::Closed => {}
                            other => assert!(stopped, "{other:?}"),
                        }
                        return Err(answer);
                    }
                    Cut::Joining { .. } => {}
                }
            }
        }
        self.note("finalizes".into());
        client.send_finalize(steps);
        loop {
            match client.answer() {
                Answer::Frame(Frame::FinalizeAck) => {
                    tell(Came::Finished);
                    return Ok(());
                }
                Answer::Stop => {}
                other => return Err(other),
            }
        }
    }
}

/// A simulation and what the control plane does for it.
struct Simulation {
    world: Arc<World>,
    simulation: u32,
    threads: Vec<JoinHandle<()>>,
}

impl Simulation {
    /// Registers an attempt; false when the study is stopped.
    fn register(&self, attempt: u32) -> bool {
        let parameters = crate::study::parameters(self.simulation, 0);
        match self.world.study.session.register(self.simulation, attempt, 0, parameters) {
            Ok(()) => true,
            Err(error) => {
                assert!(self.world.stopped.load(Ordering::Acquire), "attempt {attempt}: {error}");
                false
            }
        }
    }

    fn start(&mut self, attempt: u32, size: u32, cut: Option<Cut>) -> (Receiver<Came>, Arc<AtomicBool>) {
        let (sender, receiver) = channel();
        let replaced = Arc::new(AtomicBool::new(false));
        for rank in 0..size {
            let victim = cut.map(|cut| match cut {
                Cut::Joining { rank } | Cut::Dies { rank, .. } | Cut::Replaced { rank, .. } => rank % size,
            });
            let rank = Rank {
                world: Arc::clone(&self.world),
                who: Identity::of(self.simulation).attempt(attempt).rank(rank, size),
                name: format!("simulation {} attempt {attempt} rank {rank}", self.simulation),
                cut: cut.filter(|_| victim == Some(rank)),
                replaced: Arc::clone(&replaced),
            };
            let sender: Sender<Came> = sender.clone();
            self.threads.push(std::thread::spawn(move || {
                let tell = |came| {
                    // Nobody listens to an attempt that was replaced.
                    let _ = sender.send(came);
                };
                match rank.run(&tell) {
                    Ok(()) => rank.note("is at its end".into()),
                    Err(answer) => {
                        rank.note(format!("is at its end: {answer:?}"));
                        tell(Came::Refused);
                    }
                }
            }));
        }
        (receiver, replaced)
    }

    /// Runs attempt after attempt until one is finished, or the study is stopped.
    fn run(&mut self) {
        let (size, cuts) = self.world.scenario.simulations[self.simulation as usize].clone();
        let mut attempt = 1;
        let mut cuts = cuts.into_iter();
        if !self.register(attempt) {
            return;
        }
        loop {
            let cut = cuts.next();
            let (came, replaced) = self.start(attempt, size, cut);
            let mut ends: Vec<Came> = Vec::new();
            let over = loop {
                match came.recv_timeout(DEADLINE) {
                    Ok(Came::Died | Came::Stands) => break false,
                    Ok(end) => ends.push(end),
                    // All its ranks are at their end.
                    Err(RecvTimeoutError::Disconnected) => break true,
                    Err(RecvTimeoutError::Timeout) => panic!("simulation {} is stuck", self.simulation),
                }
            };
            if over {
                let finished = ends.iter().all(|&end| end == Came::Finished);
                assert!(finished || self.world.stopped.load(Ordering::Acquire), "{ends:?}");
                return;
            }
            attempt += 1;
            let registered = self.register(attempt);
            replaced.store(true, Ordering::Release);
            if !registered {
                return;
            }
        }
    }
}

/// Trains on all there is; keeps some samples for a while, and rests.
fn train(world: &World) -> Vec<SampleKey> {
    let mut held: VecDeque<(Sample, SampleKey)> = VecDeque::new();
    let mut keys = Vec::new();
    loop {
        world.note("sampler", format!("waits for its sample {}", keys.len()));
        match world.study.buffer.get(Some(Instant::now() + DEADLINE)) {
            Ok(sample) => {
                let key = check(&sample);
                held.push_back((sample, key));
                keys.push(key);
            }
            Err(BufferError::EndOfData) => return keys,
            Err(error) => panic!("{error}"),
        }
        world.drawn.store(keys.len(), Ordering::Relaxed);
        while held.len() > world.scenario.hoard {
            // A view has not changed under its holder.
            let held = held.pop_front().map(|(sample, key)| (check(&sample), key));
            assert!(held.is_some_and(|(now, then)| now == then));
        }
        world.study.session.mark_trained(keys.last().copied());
        if world.scenario.stop_after == Some(keys.len()) {
            world.stopped.store(true, Ordering::Release);
            world.study.session.stop().unwrap();
        }
        if !world.study.session.reception_over() {
            std::thread::sleep(world.scenario.rest);
        }
    }
}

fn start(scenario: &Scenario) -> Arc<World> {
    let config = SessionConfig {
        nb_time_steps: Some(scenario.steps),
        receive_buffer_size: SOCKET_BUFFER,
        ..config(scenario.simulations.len() as u32)
    };
    let buffer = BufferConfig {
        kind: scenario.kind,
        watermark: scenario.watermark,
        ..fifo(scenario.capacity, scenario.assembly_slots)
    };
    Arc::new(World {
        study: Study::start(config, buffer),
        scenario: scenario.clone(),
        stopped: AtomicBool::new(false),
        doing: Mutex::default(),
        drawn: AtomicUsize::new(0),
        wrote_on: AtomicUsize::new(0),
    })
}

/// Everything comes to its end before the deadline, or the test says where everything stands.
fn run(scenario: &Scenario) -> (Arc<World>, Vec<SampleKey>) {
    let world = start(scenario);
    let (done, finished) = channel();
    let spawn = |name: String, work: Box<dyn FnOnce() -> Vec<SampleKey> + Send>| {
        let done = done.clone();
        std::thread::spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(work)).map_err(|_| name);
            done.send(result).unwrap_or_default();
        });
    };
    let sampled = Arc::clone(&world);
    spawn("the sampler".into(), Box::new(move || train(&sampled)));
    for simulation in 0..scenario.simulations.len() as u32 {
        let mut simulation = Simulation { world: Arc::clone(&world), simulation, threads: Vec::new() };
        spawn(
            format!("simulation {}", simulation.simulation),
            Box::new(move || {
                simulation.run();
                for thread in simulation.threads {
                    assert!(thread.join().is_ok(), "a rank failed");
                }
                Vec::new()
            }),
        );
    }
    let end = Instant::now() + DEADLINE;
    let mut keys = Vec::new();
    for _ in 0..=scenario.simulations.len() {
        match finished.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Ok(more)) => keys.extend(more),
            Ok(Err(name)) => panic!("{name} failed (its words are above):\n{}", world.describe()),
            Err(_) => panic!("not at its end after {DEADLINE:?}:\n{}", world.describe()),
        }
    }
    (world, keys)
}

/// What happened in a study on its way.
struct Seen {
    /// Complete samples waited for room.
    full: bool,
    /// A rank died in the middle of a frame, and the session has seen it.
    torn: bool,
    /// A rank was replaced in the middle of a frame, and wrote on.
    replaced: bool,
}

fn check_end(scenario: &Scenario) -> Seen {
    let (world, keys) = run(scenario);
    let (session, study) = (&world.study.session, &world.study);
    let unique: HashSet<SampleKey> = keys.iter().copied().collect();
    if scenario.kind == Kind::Fifo {
        assert_eq!(unique.len(), keys.len(), "a sample was trained on twice");
    }
    assert!(session.reception_over());
    assert_eq!(study.buffer.population(), 0);
    let counters = session.counters();
    assert_eq!((counters.samples_waiting, counters.slot_waiters), (0, 0));
    assert_eq!(counters.duplicates_refused, 0);
    let stopped = world.stopped.load(Ordering::Acquire);
    // A complete sample that waited for room at the stop was thrown away.
    let sums = session.close_ledger(if stopped { Reason::StoppedEarly } else { Reason::Untrained });
    assert_eq!(sums.trained, unique.len() as u64, "{sums:?}");
    assert_eq!(sums.declared, sums.trained + sums.dropped(), "{sums:?}");
    if stopped {
        assert_eq!((sums.dropped(), sums.open()), (sums.dropped_stopped_early, 0), "{sums:?}");
    } else {
        let simulations = scenario.simulations.len() as u64;
        let wanted: HashSet<SampleKey> = (0..simulations as u32)
            .flat_map(|simulation| (0..scenario.steps).map(move |step| key(simulation, 0, step)))
            .collect();
        assert_eq!(unique, wanted);
        assert_eq!(sums.declared, simulations * scenario.steps, "{sums:?}");
        assert_eq!((counters.simulations_finished, sums.dropped()), (simulations, 0), "{sums:?}");
    }
    Seen {
        full: counters.room_wait_seconds > 0.0,
        torn: study.refusals().iter().any(|text| text.contains("in the middle of a frame")),
        replaced: world.wrote_on.load(Ordering::Relaxed) > 0,
    }
}

/// `MELISSA_LONG=1` asks for the long form.
fn cases() -> u32 {
    if std::env::var_os("MELISSA_LONG").is_some() { 2000 } else { 100 }
}

#[test]
fn every_study_comes_to_its_end_whichever_attempts_are_replaced() {
    // A study that hangs takes its whole deadline, and hangs at times only: it is shown as it came, not made smaller.
    let config = ProptestConfig {
        cases: cases(),
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let [full, torn, replaced] = [const { Cell::new(0u32) }; 3];
    let count = |cell: &Cell<u32>, seen| cell.set(cell.get() + u32::from(seen));
    let result = TestRunner::new(config).run(&scenarios(), |scenario| {
        let seen = check_end(&scenario);
        count(&full, seen.full);
        count(&torn, seen.torn);
        count(&replaced, seen.replaced);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // What this test is for did happen.
    let seen = (full.get(), torn.get(), replaced.get());
    assert!(seen.0 > 0 && seen.1 > 0 && seen.2 > 0, "studies (full, torn, replaced): {seen:?}");
}
