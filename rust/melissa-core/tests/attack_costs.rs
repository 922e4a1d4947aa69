//! What attacks cost a session: time until the refusal, and memory, counted by an allocator of this binary's own.
//!
//! Every file under `tests/data/wire/attacks` is sent to a session of the example study of that folder, at each stage
//! that a connection can be at. What is allocated is checked always; times only with `MELISSA_LONG=1`, which
//! `ci/verify/attacks.sh` sets, as the median of several runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[allow(dead_code)]
#[path = "session/client.rs"]
mod client;

use client::{Client, Identity, PATIENCE, expect, open, write_message};
use melissa_core::buffer::{Buffer, BufferConfig, Kind as BufferKind};
use melissa_core::schema::Dtype;
use melissa_core::session::{MAX_PENDING_HANDSHAKES, Session, SessionConfig};
use melissa_core::wire::auth::StudyKey;
use melissa_core::wire::handshake::{Hello, Refused, code, encode_frame, parse};
use melissa_core::wire::header::{HEADER_SIZE, Header, Kind, MAGIC};
use melissa_core::wire::{PROTOCOL, ROLE_CLIENT};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of the largest allocation that an attack may cause.
const LARGEST: usize = 1_000_000;
/// Time from an attack's last byte to its refusal.
const SLOWEST: Duration = Duration::from_millis(10);

/// Counts what the threads of sessions allocate, and what is allocated in all.
struct Counting;

thread_local! {
    /// This is a thread of a test: what it allocates is no session's.
    static OF_A_TEST: Cell<bool> = const { Cell::new(false) };
}
/// Of sessions' threads, since [`reset`].
static LARGEST_NOW: AtomicUsize = AtomicUsize::new(0);
static SUM: AtomicUsize = AtomicUsize::new(0);
/// Of all threads.
static LIVE: AtomicIsize = AtomicIsize::new(0);

impl Counting {
    fn count(bytes: usize) {
        LIVE.fetch_add(bytes.cast_signed(), Relaxed);
        if !OF_A_TEST.try_with(Cell::get).unwrap_or(true) {
            LARGEST_NOW.fetch_max(bytes, Relaxed);
            SUM.fetch_add(bytes, Relaxed);
        }
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the rules of this function, which are those of the one that is called.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size().cast_signed(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LIVE.fetch_sub(layout.size().cast_signed(), Relaxed);
        Self::count(new_size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn reset() {
    LARGEST_NOW.store(0, Relaxed);
    SUM.store(0, Relaxed);
}

/// Writes every line as a logger would, and sees whether one could move a terminal's cursor.
struct Log;

static LINE_WITH_CONTROLS: AtomicBool = AtomicBool::new(false);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut line = String::new();
        write!(line, "{} {} {}", record.level(), record.target(), record.args()).unwrap();
        if line.chars().any(char::is_control) {
            LINE_WITH_CONTROLS.store(true, Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The tests count one after another. The thread that has this is a test's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    OF_A_TEST.set(true);
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = log::set_logger(&Log);
    log::set_max_level(log::LevelFilter::Debug);
    guard
}

fn long() -> bool {
    std::env::var_os("MELISSA_LONG").is_some_and(|value| value == "1")
}

// The study of the example session.

const KEY: [u8; 32] = *b"an example key, thirty-two bytes";
/// Simulation of two ranks, that of the files.
const PAIR: u32 = 12;
/// Simulation of one rank.
const SINGLE: u32 = 11;
const SHARES: [[u64; 2]; 2] = [[6, 2], [4, 3]];

struct Study {
    session: Session,
    /// Attempts registered so far; the next is for whoever asks.
    attempts: u32,
}

impl Study {
    fn start() -> Self {
        let names = ["temperature", "phase"].map(str::to_owned).to_vec();
        let key = StudyKey::from_bytes(&KEY).unwrap();
        let config = SessionConfig { payload_crc: true, ..SessionConfig::new(key, 1, names, 1, 20) };
        let buffer = BufferConfig {
            kind: BufferKind::Fifo,
            capacity: 8,
            watermark: 0,
            pseudo_epochs: 1,
            batch_size: 1,
            seed: 0,
            assembly_slots: 2,
            lent_slots: Some(1),
        };
        let session = Session::start(config, Arc::new(Buffer::new(buffer).unwrap())).unwrap();
        Self { session, attempts: 1 }
    }

    /// With steps 0 and 1 of the pair, as its example session begins.
    fn begun() -> Self {
        let mut study = Self::start();
        let mut ranks = study.pair();
        for step in 0..2 {
            for rank in &mut ranks {
                for (field, share) in SHARES[rank.who.rank as usize].into_iter().enumerate() {
                    assert!(rank.send(field, step, &vec![0; share as usize * 4]));
                }
            }
        }
        study.eventually("two samples are there", |study| study.session.counters().samples_received == 2);
        study
    }

    fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "never: {what}; {:?}", self.session.counters());
            std::thread::yield_now();
        }
    }

    fn register(&mut self, simulation: u32) -> Identity {
        self.attempts += 1;
        self.session.register(simulation, self.attempts, 0, vec![0.5]).unwrap();
        let key = StudyKey::from_bytes(&KEY).unwrap();
        Identity { key, ..Identity::of(simulation).attempt(self.attempts) }
    }

    fn connect(&self, who: Identity) -> Client {
        Client::connect(self.session.address(), who).unwrap()
    }

    fn pair(&mut self) -> [Client; 2] {
        let who = self.register(PAIR);
        let mut ranks = [0, 1].map(|rank| self.connect(who.clone().rank(rank, 2)));
        for (rank, [a, b]) in ranks.iter_mut().zip(SHARES) {
            rank.send_join(&[("temperature", Dtype::F64, a), ("phase", Dtype::I32, b)]);
        }
        for rank in &mut ranks {
            rank.read_welcome().unwrap();
        }
        ranks
    }

    /// Connections of strangers and of ranks that were closed are gone, and their texts are fetched.
    fn settle(&self) {
        self.eventually("nobody is connected", |study| {
            let counters = study.session.counters();
            counters.connections == 0 && counters.handshakes_pending == 0
        });
        drop(self.session.refusals());
        drop(self.session.changes(Duration::ZERO));
    }
}

/// Where a connection is when the attack comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Nothing was said.
    Connected,
    /// The server has sent its challenge.
    Challenged,
    /// The only rank of its simulation has proved the key.
    Accepted,
    /// One of two ranks may send data.
    Welcomed,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Connected, Self::Challenged, Self::Accepted, Self::Welcomed];

    /// A connection at this stage, and the one that comes with it.
    fn reach(self, study: &mut Study) -> (TcpStream, Option<TcpStream>) {
        match self {
            Self::Connected => (open(study.session.address()), None),
            Self::Challenged => {
                let mut stream = open(study.session.address());
                let who = study.register(SINGLE);
                write_message(&mut stream, &who.hello());
                expect(&mut stream, Kind::Challenge).unwrap();
                (stream, None)
            }
            Self::Accepted => {
                let who = study.register(SINGLE);
                (study.connect(who).stream, None)
            }
            Self::Welcomed => {
                let [other, rank] = study.pair();
                (rank.stream, Some(other.stream))
            }
        }
    }

    const fn proved(self) -> bool {
        matches!(self, Self::Accepted | Self::Welcomed)
    }
}

struct Attack {
    name: String,
    bytes: Vec<u8>,
    shape: Shape,
}

fn attacks() -> Vec<Attack> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/wire/attacks");
    let index = std::fs::read(folder.join("index.json")).unwrap();
    let index: Vec<serde_json::Value> = serde_json::from_slice(&index).unwrap();
    let attacks: Vec<Attack> = index
        .iter()
        .map(|entry| {
            let name = entry["file"].as_str().unwrap().to_owned();
            let bytes = std::fs::read(folder.join(&name)).unwrap();
            Attack { shape: shape(&bytes), name, bytes }
        })
        .collect();
    assert!(attacks.len() > 100, "{} attacks", attacks.len());
    attacks
}

/// What the bytes of an attack are to a receiver of frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// They end where more is expected: within a frame, or behind a Hello that a proof should follow.
    Cut,
    /// Somewhere something comes that does not begin like a frame.
    Foreign,
    /// Frames, the last of which may break a rule.
    Frames,
}

fn shape(bytes: &[u8]) -> Shape {
    let mut rest = bytes;
    let mut waits = false;
    while !rest.is_empty() {
        if !rest.starts_with(&MAGIC) {
            return Shape::Foreign;
        }
        let Some((header, behind)) = rest.split_first_chunk::<HEADER_SIZE>() else { return Shape::Cut };
        let Ok(header) = Header::parse(header) else { return Shape::Frames };
        let Some((payload, behind)) = behind.split_at_checked(header.payload_len()) else {
            return Shape::Cut;
        };
        waits = header.kind == Kind::Hello
            && parse::<Hello>(payload)
                .is_ok_and(|hello| hello.protocol == PROTOCOL && hello.role == ROLE_CLIENT);
        rest = behind;
    }
    if waits { Shape::Cut } else { Shape::Frames }
}

/// How a server has ended a connection.
#[derive(Debug)]
enum End {
    Refused(Refused),
    Closed,
}

/// What the server answers until it refuses or closes.
fn end_of(stream: &mut TcpStream) -> End {
    let gone = |error: &std::io::Error| {
        matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
    };
    loop {
        let mut header = [0; HEADER_SIZE];
        match stream.read_exact(&mut header) {
            Err(error) if gone(&error) => return End::Closed,
            result => result.unwrap(),
        }
        let header = Header::parse(&header).unwrap();
        let mut payload = vec![0; header.payload_len()];
        stream.read_exact(&mut payload).unwrap();
        if header.kind == Kind::Refused {
            return End::Refused(parse(&payload).unwrap());
        }
    }
}

/// Sends an attack; returns how it ended, and how long that took from before its last byte was handed to the kernel:
/// the session may have done its work before the call returns.
fn strike(stream: &mut TcpStream, attack: &Attack) -> (End, Duration) {
    // A server that has seen enough may close before it has read all.
    let (last, others) = attack.bytes.split_last().unwrap();
    let _ = stream.write_all(others);
    let start = Instant::now();
    let _ = stream.write_all(&[*last]);
    if attack.shape == Shape::Cut {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let end = end_of(stream);
    (end, start.elapsed())
}

struct Cost {
    what: String,
    code: String,
    times: Vec<Duration>,
    largest: usize,
    sum: usize,
}

impl Cost {
    fn time(&self) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times[times.len() / 2]
    }
}

fn cost(study: &mut Study, attack: &Attack, stage: Stage, repeats: usize) -> Cost {
    let what = format!("{} at {stage:?}", attack.name);
    let mut cost = Cost { what: what.clone(), code: "-".into(), times: Vec::new(), largest: 0, sum: 0 };
    for _ in 0..repeats {
        let (mut stream, other) = stage.reach(study);
        let before = study.session.counters().connections_refused;
        reset();
        let (end, time) = strike(&mut stream, attack);
        cost.times.push(time);
        study.eventually("it is counted", |study| study.session.counters().connections_refused == before + 1);
        cost.largest = cost.largest.max(LARGEST_NOW.load(Relaxed));
        cost.sum = cost.sum.max(SUM.load(Relaxed));
        match end {
            End::Refused(refused) => {
                assert!(code::ALL.contains(&refused.code.as_str()), "{what}: {refused:?}");
                assert!(
                    !refused.message.is_empty() && !refused.message.chars().any(char::is_control),
                    "{what}"
                );
                cost.code = refused.code;
            }
            // Who speaks something else reads no answer, and neither does one that has gone.
            End::Closed => {
                let foreign = attack.shape == Shape::Foreign && !stage.proved();
                assert!(foreign || attack.shape == Shape::Cut, "{what}: closed without a word");
            }
        }
        drop((stream, other));
        study.settle();
    }
    cost
}

#[test]
fn each_attack_is_refused_with_a_code_and_without_a_large_allocation() {
    let _alone = alone();
    let attacks = attacks();
    let mut study = Study::begun();
    let mut round = |repeats, visit: &mut dyn FnMut(Cost)| {
        for attack in &attacks {
            for stage in Stage::ALL {
                let cost = cost(&mut study, attack, stage, repeats);
                assert!(cost.largest <= LARGEST, "{}: {} bytes at once", cost.what, cost.largest);
                assert!(cost.sum <= 2 * LARGEST, "{}: {} bytes in all", cost.what, cost.sum);
                visit(cost);
            }
        }
        LIVE.load(Relaxed)
    };
    // Tables have their size after the first round: a second one leaves nothing behind.
    let before = round(1, &mut drop);
    let grown = round(1, &mut drop) - before;
    assert!(grown < 50_000, "{grown} bytes were left behind by {} attacks", 4 * attacks.len());
    assert!(!LINE_WITH_CONTROLS.load(Relaxed), "a line of the log has control characters");
    if long() {
        let mut costs = Vec::new();
        round(5, &mut |cost| costs.push(cost));
        costs.sort_by_key(|cost| std::cmp::Reverse(cost.time()));
        println!("{} attacks, each at {} stages; the slowest:", attacks.len(), Stage::ALL.len());
        println!("{:<52} {:<9} {:>10} {:>12} {:>12}", "attack", "refused", "ms", "largest B", "in all B");
        let table = |costs: &[Cost]| {
            for cost in &costs[..10] {
                let ms = cost.time().as_secs_f64() * 1e3;
                println!(
                    "{:<52} {:<9} {ms:>10.3} {:>12} {:>12}",
                    cost.what, cost.code, cost.largest, cost.sum
                );
            }
        };
        table(&costs);
        for cost in &costs {
            assert!(cost.time() < SLOWEST, "{}: {:?}", cost.what, cost.time());
        }
        println!("the largest:");
        costs.sort_by_key(|cost| std::cmp::Reverse(cost.largest));
        table(&costs);
    }
}

#[test]
fn a_first_join_beyond_all_memory_is_refused_before_anything_is_allocated() {
    let _alone = alone();
    for (size, expected) in
        [(1u64 << 61, code::SIZE), (u64::MAX, code::SIZE), (0, code::SIZE), (1 << 50, code::MEMORY)]
    {
        let mut study = Study::start();
        let who = study.register(SINGLE);
        let mut client = study.connect(who);
        reset();
        let start = Instant::now();
        client.send_join(&[("temperature", Dtype::F64, size), ("phase", Dtype::I32, 1)]);
        let End::Refused(refused) = end_of(&mut client.stream) else { panic!("{size}: no word") };
        let time = start.elapsed();
        assert_eq!(refused.code, expected, "{}", refused.message);
        assert!(LARGEST_NOW.load(Relaxed) <= LARGEST, "{size}: {} bytes", LARGEST_NOW.load(Relaxed));
        // A slab that does not fit ends the study, which says both figures; what no memory has only the client.
        if expected == code::MEMORY {
            assert!(refused.message.contains("MiB"), "{}", refused.message);
        } else {
            assert_eq!(study.session.counters().connections_refused, 1);
        }
        assert!(!long() || time < SLOWEST, "{size}: {time:?}");
    }
}

#[test]
fn memory_does_not_follow_the_number_of_ranks_that_a_client_states() {
    let _alone = alone();
    let mut study = Study::start();
    let who = study.register(SINGLE);
    reset();
    let mut ranks: Vec<_> =
        [u32::MAX - 1, 0, 1 << 31].map(|rank| study.connect(who.clone().rank(rank, u32::MAX))).into();
    for rank in &mut ranks {
        rank.send_join(&[("temperature", Dtype::F64, u64::MAX), ("phase", Dtype::I32, u64::MAX)]);
    }
    // What the session was told has had its turn.
    study.eventually("all are connected", |study| study.session.counters().connections == 3);
    drop(ranks);
    study.settle();
    assert!(SUM.load(Relaxed) < 200_000, "{} bytes", SUM.load(Relaxed));
}

#[test]
fn nothing_grows_by_what_comes_after_a_stop() {
    let _alone = alone();
    let mut study = Study::begun();
    let [other, mut rank] = study.pair();
    study.session.stop().unwrap();
    let before = LIVE.load(Relaxed);
    reset();
    // Leaps of the largest kind, and finalizes whose answers nobody reads.
    let mut frames = Vec::new();
    for leap in 1..=2000 {
        let header = Header { element_count: 0, payload_length: 0, ..rank.header(0, leap << 16, 0) };
        frames.extend(header.encode());
    }
    let finalize = Header { simulation: PAIR, client_rank: 1, ..Header::control(Kind::Finalize, 0) };
    for _ in 0..50_000 {
        frames.extend(finalize.encode());
    }
    let kept = frames.capacity().cast_signed();
    let _ = rank.stream.write_all(&frames);
    study.eventually("the second finalize is refused", |study| {
        study.session.counters().connections_refused == 1
    });
    let grown = LIVE.load(Relaxed) - before - kept;
    assert!(grown < 100_000, "{grown} bytes");
    assert!(LARGEST_NOW.load(Relaxed) < 100_000, "{} bytes", LARGEST_NOW.load(Relaxed));
    drop(other);
}

#[test]
fn strangers_who_open_a_thousand_connections_take_the_memory_of_those_that_may_pend() {
    let _alone = alone();
    let study = Study::start();
    let hello = encode_frame(Kind::Hello, &Identity::of(0).hello());
    let before = LIVE.load(Relaxed);
    // As much as a stranger may send without an answer.
    let mut announced = Header::control(Kind::Hello, 4032).encode().to_vec();
    announced.resize(4095, b' ');
    let mut streams = Vec::with_capacity(1000);
    for index in 0..1000 {
        let mut stream = open(study.session.address());
        stream.write_all(if index % 2 == 0 { &announced } else { &hello[..hello.len() - 1] }).unwrap();
        streams.push(stream);
    }
    let pending = MAX_PENDING_HANDSHAKES as u64;
    study.eventually("the door is full", |study| study.session.counters().handshakes_pending == pending);
    let grown = LIVE.load(Relaxed) - before - (streams.capacity() * size_of::<TcpStream>()).cast_signed();
    assert!(grown < 64 * 16_384, "{grown} bytes for {pending} handshakes");
    assert_eq!(study.session.counters().handshakes_pending, pending);
}
