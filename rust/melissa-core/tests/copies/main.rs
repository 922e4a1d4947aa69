//! Two copies from the wire to the batch, and no allocation per sample: the threads' copies, reads and allocations are
//! counted while a session receives from real clients and samplers make batches.
//!
//! Everything is counted between two moments at which all threads rest, so that the figures are exact. Bytes that the
//! session reads are the payload and its headers, into slots (copy 1); it copies nothing itself. Whoever gathers copies
//! the payload once (copy 2). Nobody else copies payload.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../session/client.rs"]
#[allow(dead_code)]
mod client;
mod counting;

use client::{Client, Identity, KEY, PATIENCE};
use counting::{Count, Role, count, set_role};
use melissa_core::batch::{Batch, BatchLayout, BatchPool, streamed_bytes};
use melissa_core::buffer::{Buffer, BufferConfig, Kind};
use melissa_core::error::BufferError;
use melissa_core::prefetch::Prefetcher;
use melissa_core::schema::Dtype;
use melissa_core::session::{DataType, Session, SessionConfig};
use melissa_core::wire::auth::StudyKey;
use melissa_core::wire::header::HEADER_SIZE;
use std::hint::black_box;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const FIELDS: [(&str, Dtype, u64); 2] = [("temperature", Dtype::F32, 10_000), ("flux", Dtype::F64, 512)];
/// Bytes of the fields of one sample.
const PAYLOAD: u64 = 4 * 10_000 + 8 * 512;
/// Simulations of one rank; one more has two ranks.
const SINGLES: u32 = 4;
const SIMULATIONS: u32 = SINGLES + 1;
const BATCH: usize = 8;
/// Batches that a prefetcher keeps ready.
const DEPTH: usize = 2;
/// Time steps of each simulation before the counting, and in the two windows in which it is done.
const WARM_UP: u64 = 96;
const WINDOWS: [u64; 2] = [160, 480];
const STEPS: u64 = WARM_UP + WINDOWS[0] + WINDOWS[1];

/// The counters are the whole process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TESTS: Mutex<()> = Mutex::new(());
    TESTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How samples get from the buffer to whoever trains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    /// A thread that gathers batches into one memory.
    Gather,
    /// Batches gathered ahead.
    Prefetch,
    /// Samples lent one by one.
    Views,
}

/// What the counting thread tells the others, and they tell it.
#[derive(Default)]
struct Course {
    /// Steps that each simulation is to have sent by now.
    steps: AtomicU64,
    /// Samples that are to have gone through the buffer by now.
    samples: AtomicU64,
    /// Samples that the sampler has been given.
    taken: AtomicU64,
    /// The sampler is to make a copy too many, of one sample's size, whenever it has taken something.
    extra_copy: AtomicBool,
    extra_copies: AtomicU64,
    over: AtomicBool,
    /// Where the samples lent began and ended in memory.
    lowest_view: AtomicUsize,
    views_end: AtomicUsize,
}

impl Course {
    /// Waits until it is to go beyond `done`; false at the end.
    fn goes_beyond(&self, goal: &AtomicU64, done: u64) -> bool {
        while goal.load(SeqCst) <= done {
            if self.over.load(SeqCst) {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        true
    }
}

/// One rank of a simulation, which sends as many steps as it is told.
fn sends(address: String, simulation: u32, rank: u32, size: u32, course: Arc<Course>) -> JoinHandle<()> {
    thread::spawn(move || {
        set_role(Role::Client);
        let mut client = Client::connect(&address, Identity::of(simulation).rank(rank, size)).unwrap();
        let shares = FIELDS.map(|(name, dtype, elements)| (name, dtype, elements / u64::from(size)));
        client.join(&shares).unwrap();
        let mut bodies = shares.map(|(_, dtype, elements)| vec![0u8; elements as usize * dtype.size()]);
        let mut step = 0;
        while course.goes_beyond(&course.steps, step) {
            for (field, body) in bodies.iter_mut().enumerate() {
                body.fill(stamp(simulation, step));
                let header = client.header(field, step, shares[field].2).encode();
                let mut pieces = [IoSlice::new(&header), IoSlice::new(body)];
                let mut pieces = &mut pieces[..];
                while !pieces.is_empty() {
                    let sent = client.stream.write_vectored(pieces).unwrap();
                    IoSlice::advance_slices(&mut pieces, sent);
                }
            }
            step += 1;
        }
    })
}

/// Every byte of a sample.
fn stamp(simulation: u32, step: u64) -> u8 {
    (u64::from(simulation) * 31 + step * 7 + 1) as u8
}

fn check_batch(batch: &Batch) {
    for (field, &(_, dtype, elements)) in FIELDS.iter().enumerate() {
        let row_bytes = elements as usize * dtype.size();
        for (row, key) in batch.keys().iter().enumerate() {
            // SAFETY: the batch has this row, and nobody writes to it while it is borrowed.
            let bytes =
                unsafe { std::slice::from_raw_parts(batch.field_ptr(field).add(row * row_bytes), row_bytes) };
            let stamp = stamp(key.simulation, key.time_step);
            assert!(bytes.iter().all(|&byte| byte == stamp), "{key:?}, field {field}");
        }
    }
}

/// The sampler's thread: takes samples until as many as the course says have gone through the buffer, and rests.
fn samples(buffer: Arc<Buffer>, lane: Lane, course: Arc<Course>) -> JoinHandle<()> {
    thread::spawn(move || {
        set_role(Role::Sampler);
        assert!(buffer.wait_ready(Some(Instant::now() + PATIENCE)).unwrap());
        let pool = Arc::<BatchPool>::default();
        let mut batch = Batch::new(&pool, BatchLayout::new(buffer.schema().unwrap(), BATCH)).unwrap();
        let prefetcher = (lane == Lane::Prefetch)
            .then(|| Prefetcher::start(Arc::clone(&buffer), BATCH, DEPTH, false).unwrap());
        let (source, mut spare) = (vec![1u8; PAYLOAD as usize], vec![0u8; PAYLOAD as usize]);
        // A buffer whose samples stay is drawn from until all have come; from the others each comes once.
        let stays = matches!(buffer.config().kind, Kind::Reservoir | Kind::BatchReservoir);
        let done = |taken| if stays { buffer.metrics().published } else { taken };
        let mut taken = 0;
        while course.goes_beyond(&course.samples, done(taken)) {
            let deadline = Some(Instant::now() + Duration::from_millis(200));
            let rows = match (&prefetcher, lane) {
                (_, Lane::Views) => match buffer.get(deadline) {
                    Ok(sample) => {
                        let stamp = stamp(sample.key().simulation, sample.key().time_step);
                        for field in 0..FIELDS.len() {
                            let bytes = sample.field_bytes(field);
                            assert!(bytes.iter().all(|&byte| byte == stamp), "{:?}", sample.key());
                            let start = bytes.as_ptr() as usize;
                            course.lowest_view.fetch_min(start, SeqCst);
                            course.views_end.fetch_max(start + bytes.len(), SeqCst);
                        }
                        assert!(!sample.is_copy());
                        1
                    }
                    Err(BufferError::Timeout) => 0,
                    Err(other) => panic!("{other}"),
                },
                (Some(prefetcher), _) => match prefetcher.next(deadline) {
                    Ok(batch) => {
                        check_batch(&batch);
                        // As many batches are out now as ever will be: this one, and those that may be ready.
                        while taken == 0 && buffer.metrics().drawn < ((1 + DEPTH) * BATCH) as u64 {
                            thread::sleep(Duration::from_micros(200));
                        }
                        batch.keys().len()
                    }
                    Err(BufferError::Timeout) => 0,
                    Err(other) => panic!("{other}"),
                },
                (None, _) => match buffer.gather(&mut batch, deadline) {
                    Ok(()) => {
                        check_batch(&batch);
                        let rows = batch.keys().len();
                        batch.clear();
                        rows
                    }
                    // Rows that have come stay, and the next turn goes on.
                    Err(BufferError::Timeout) => 0,
                    Err(other) => panic!("{other}"),
                },
            };
            if rows > 0 && course.extra_copy.load(SeqCst) {
                black_box(&mut spare[..]).copy_from_slice(black_box(&source[..]));
                course.extra_copies.fetch_add(1, SeqCst);
            }
            taken += rows as u64;
            course.taken.store(taken, SeqCst);
        }
    })
}

/// What a window of time steps cost.
struct Window {
    samples: u64,
    /// Samples drawn: more than came where they stay in the buffer.
    drawn: u64,
    extra_copies: u64,
    /// Bytes that batches were given through vector registers, which no call shows.
    streamed: u64,
    session: Count,
    prefetch: Count,
    sampler: Count,
    client: Count,
    unknown: Count,
}

/// A study on the loopback interface that goes on step by step.
struct Study {
    session: Session,
    buffer: Arc<Buffer>,
    course: Arc<Course>,
    threads: Vec<JoinHandle<()>>,
    steps: u64,
}

impl Study {
    fn start(kind: Kind, lane: Lane, nb_time_steps: Option<u64>) -> Self {
        let buffer = BufferConfig {
            kind,
            capacity: 32,
            watermark: 4,
            pseudo_epochs: 1,
            batch_size: BATCH,
            seed: 5,
            assembly_slots: 8,
            lent_slots: None,
        };
        // A FIRO keeps its watermark back, and all samples of a window are to come out.
        let watermark = if kind == Kind::Firo { 0 } else { buffer.watermark };
        let buffer = Arc::new(Buffer::new(BufferConfig { watermark, ..buffer }).unwrap());
        let config = SessionConfig {
            data_type: DataType::AsSent,
            nb_time_steps,
            simulation_timeout: Some(PATIENCE),
            ..SessionConfig::new(
                StudyKey::from_bytes(&KEY).unwrap(),
                1,
                FIELDS.map(|field| field.0.to_owned()).to_vec(),
                2,
                SIMULATIONS,
            )
        };
        let session = Session::start(config, Arc::clone(&buffer)).unwrap();
        let course = Arc::new(Course::default());
        course.lowest_view.store(usize::MAX, SeqCst);
        counting::forget_targets();
        let mut threads = vec![samples(Arc::clone(&buffer), lane, Arc::clone(&course))];
        for simulation in 0..SIMULATIONS {
            session.register(simulation, 1, 0, vec![f64::from(simulation), 0.5]).unwrap();
            let size = if simulation < SINGLES { 1 } else { 2 };
            for rank in 0..size {
                let address = session.address().to_owned();
                threads.push(sends(address, simulation, rank, size, Arc::clone(&course)));
            }
        }
        Self { session, buffer, course, threads, steps: 0 }
    }

    /// Lets every simulation send so many further steps, until all threads rest again, and says what that cost.
    fn run(&mut self, steps: u64) -> Window {
        let before = self.now();
        self.steps += steps;
        self.course.steps.store(self.steps, SeqCst);
        self.course.samples.store(self.steps * u64::from(SIMULATIONS), SeqCst);
        let after = self.rest();
        let samples = steps * u64::from(SIMULATIONS);
        Window {
            samples,
            drawn: after.drawn - before.drawn,
            extra_copies: after.extra_copies - before.extra_copies,
            streamed: after.streamed - before.streamed,
            session: after.session - before.session,
            prefetch: after.prefetch - before.prefetch,
            sampler: after.sampler - before.sampler,
            client: after.client - before.client,
            unknown: after.unknown - before.unknown,
        }
    }

    fn now(&self) -> Window {
        Window {
            samples: 0,
            drawn: self.buffer.metrics().drawn,
            extra_copies: self.course.extra_copies.load(SeqCst),
            streamed: streamed_bytes(),
            session: count(Role::Session),
            prefetch: count(Role::Prefetch),
            sampler: count(Role::Sampler),
            client: count(Role::Client),
            unknown: count(Role::Unknown),
        }
    }

    /// Waits until everything that was sent has gone through, and nothing is counted any more.
    fn rest(&self) -> Window {
        let begin = Instant::now();
        let samples = self.course.samples.load(SeqCst);
        loop {
            assert!(begin.elapsed() < PATIENCE, "the threads never rest: {:?}", self.buffer.metrics());
            let stays = matches!(self.buffer.config().kind, Kind::Reservoir | Kind::BatchReservoir);
            let through = if stays { u64::MAX } else { self.course.taken.load(SeqCst) };
            let before = self.now();
            thread::sleep(Duration::from_millis(100));
            // The answer comes behind whatever the session was doing.
            let received = self.session.counters().samples_received;
            let after = self.now();
            let same = before.drawn == after.drawn
                && before.session == after.session
                && before.sampler == after.sampler
                && before.prefetch == after.prefetch;
            if same && received == samples && self.buffer.metrics().published == samples && through >= samples
            {
                return after;
            }
        }
    }
}

impl Drop for Study {
    fn drop(&mut self) {
        self.course.over.store(true, SeqCst);
        self.session.close();
        for thread in self.threads.drain(..) {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "a thread of the study panicked");
        }
    }
}

/// Bytes on the wire of so many steps of every simulation: each rank sends each field with a header of its own.
fn wire_bytes(steps: u64) -> u64 {
    let headers = (SINGLES as usize + 2) * FIELDS.len() * HEADER_SIZE;
    steps * (u64::from(SIMULATIONS) * PAYLOAD + headers as u64)
}

/// Bytes of small copies that each sample may cost: headers, handles, states. Far less than its payload.
const SMALL: u64 = 512;

/// Bytes of a sample that are counted when it is copied into a batch: what streams leave over is a small copy.
fn gathered_per_sample(streamed: u64) -> u64 {
    let whole = |bytes: u64| if streamed > 0 && bytes >= 16 << 10 { bytes / 1024 * 1024 } else { bytes };
    FIELDS.iter().map(|&(_, dtype, elements)| whole(dtype.size() as u64 * elements)).sum()
}

/// What holds in every window of every lane.
fn check_copies(window: &Window, steps: u64, lane: Lane) {
    let Window { samples, drawn, session, prefetch, sampler, client, unknown, .. } = window;
    assert_eq!(session.read, wire_bytes(steps), "the session reads the payload and its headers");
    assert_eq!(session.large_copies, 0, "the session copies payload");
    assert!(session.small_copies < samples * SMALL, "the session copies payload in pieces: {session:?}");
    let gathered = if lane == Lane::Views { 0 } else { drawn * gathered_per_sample(window.streamed) };
    assert_eq!(
        window.streamed + sampler.large_copies + prefetch.large_copies,
        gathered + window.extra_copies * PAYLOAD,
        "payload is copied once from the slot to the batch: {drawn} samples were drawn, {sampler:?}, {prefetch:?}"
    );
    let small = sampler.small_copies + prefetch.small_copies;
    assert!(small < drawn * SMALL, "a sampler copies payload in pieces: {sampler:?}, {prefetch:?}");
    assert_eq!((client.large_copies, unknown.large_copies), (0, 0), "somebody else copies payload");
    assert_eq!((sampler.read, prefetch.read), (0, 0));
}

fn two_copies_and_no_allocation(kind: Kind, lane: Lane) {
    let mut study = Study::start(kind, lane, Some(STEPS));
    study.run(WARM_UP);
    for steps in WINDOWS {
        let window = study.run(steps);
        println!(
            "{kind:?}, {lane:?}: {} samples came, {} were drawn; allocations of session {}, prefetch {}, sampler {}; \
             small copies {} and {} bytes per sample",
            window.samples,
            window.drawn,
            window.session.allocations,
            window.prefetch.allocations,
            window.sampler.allocations,
            window.session.small_copies / window.samples,
            (window.sampler.small_copies + window.prefetch.small_copies) / window.drawn,
        );
        check_copies(&window, steps, lane);
        assert_eq!(window.session.allocations, 0, "the session allocates: {:?}", window.session);
        assert_eq!(window.sampler.allocations, 0, "the sampler allocates: {:?}", window.sampler);
        assert_eq!(window.prefetch.allocations, 0, "the prefetcher allocates: {:?}", window.prefetch);
    }
    if lane == Lane::Views {
        let targets = counting::targets();
        let views = study.course.lowest_view.load(SeqCst)..study.course.views_end.load(SeqCst);
        assert!(
            views.start <= targets.start && targets.end <= views.end,
            "the session reads into {targets:x?}, and samples lie in {views:x?}"
        );
    }
}

#[test]
fn a_sample_is_copied_twice_and_allocates_nothing_on_its_way_into_a_batch() {
    let _alone = alone();
    for kind in Kind::ALL {
        two_copies_and_no_allocation(kind, Lane::Gather);
    }
}

#[test]
fn a_batch_that_is_gathered_ahead_costs_no_copy_and_no_allocation_more() {
    let _alone = alone();
    for kind in Kind::ALL {
        two_copies_and_no_allocation(kind, Lane::Prefetch);
    }
}

#[test]
fn a_sample_that_is_lent_lies_where_the_session_has_read_it() {
    let _alone = alone();
    for kind in [Kind::Fifo, Kind::Reservoir] {
        two_copies_and_no_allocation(kind, Lane::Views);
    }
}

#[test]
fn a_study_that_does_not_say_its_time_steps_allocates_with_their_logarithm() {
    let _alone = alone();
    let mut study = Study::start(Kind::Fifo, Lane::Gather, None);
    let mut steps = WARM_UP;
    study.run(steps);
    for more in WINDOWS {
        let window = study.run(more);
        check_copies(&window, more, Lane::Gather);
        // The ledger has two sets of time steps for each simulation, a bit each, which double when they are full.
        let doublings = (steps + more).ilog2() - steps.ilog2() + 1;
        let most = u64::from(2 * SIMULATIONS * doublings);
        assert!(window.session.allocations <= most, "{:?}, and {most} were expected", window.session);
        assert_eq!(window.sampler.allocations, 0);
        steps += more;
    }
}

#[test]
fn the_counters_see_a_copy_too_many() {
    let _alone = alone();
    let mut study = Study::start(Kind::Fifo, Lane::Gather, Some(STEPS));
    study.run(WARM_UP);
    study.course.extra_copy.store(true, SeqCst);
    let window = study.run(WINDOWS[0]);
    let batches = window.samples / BATCH as u64;
    assert_eq!(window.extra_copies, batches);
    let gathered = window.samples * gathered_per_sample(window.streamed);
    assert_eq!(window.streamed + window.sampler.large_copies, gathered + batches * PAYLOAD);
}

#[test]
fn what_a_thread_of_the_core_does_is_counted_as_its_own() {
    let _alone = alone();
    for (name, role) in [("melissa-session", Role::Session), ("melissa-prefetch", Role::Prefetch)] {
        let before = count(role);
        let thread = thread::Builder::new().name(name.into());
        let work = thread.spawn(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut receiver, _) = listener.accept().unwrap();
            let mut bytes = black_box(vec![3u8; 5000]);
            sender.write_all(&bytes).unwrap();
            receiver.read_exact(&mut bytes[..3000]).unwrap();
            let (start, rest) = bytes.split_at_mut(2500);
            black_box(rest).copy_from_slice(black_box(start));
            black_box(&mut bytes[..]).copy_within(black_box(0..2000), 1);
            let small: [u8; 100] = black_box(&bytes[..100]).try_into().unwrap();
            black_box(&small);
        });
        work.unwrap().join().unwrap();
        let done = count(role) - before;
        assert_eq!((done.read, done.large_copies), (3000, 2500 + 2000), "{role:?}: {done:?}");
        assert!(done.allocations >= 1 && done.allocated >= 5000, "{role:?}: {done:?}");
    }
}

#[test]
fn the_functions_that_count_copy_as_those_whose_place_they_take() {
    let _alone = alone();
    let numbers: Vec<u8> = (0..=255).cycle().take(9000).collect();
    for bytes in [0, 1, 7, 64, 1023, 1024, 4096] {
        for (from, to) in [(0, 4500), (4500, 0), (100, 101), (101, 100), (50, 50)] {
            let mut copied = numbers.clone();
            black_box(&mut copied[..]).copy_within(black_box(from..from + bytes), to);
            let moved =
                |place: usize| if (to..to + bytes).contains(&place) { place - to + from } else { place };
            let expected: Vec<u8> = (0..numbers.len()).map(|place| numbers[moved(place)]).collect();
            assert_eq!(copied, expected, "{bytes} bytes from {from} to {to}");
        }
    }
}
