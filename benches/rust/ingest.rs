//! From the socket to the slot: the receiving session beside a bare loop that receives the same bytes into one buffer.
//!
//! Both receive from one process that keeps all connections busy. Beside the session runs a sampler, as always: it
//! sleeps, and takes what has come out of a FIFO in bursts, as views, so that it costs two cores with a sender and a
//! receiver on them little. Beside the bare loop the same thread sleeps and wakes and finds nothing: what the sampler costs
//! counts against the session.
//!
//! Two figures a row. *samples/s* is what arrives, and in it the sender's work counts too, which is the larger part over TCP.
//! *samples per CPU second* is what the receiving thread alone could take.

#![allow(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on has nothing to tidy up")]
#![allow(clippy::print_stdout, reason = "the figures are what a bench is run for")]
#![allow(missing_debug_implementations, reason = "nobody prints the parts of a bench")]

#[path = "ingest/bare.rs"]
mod bare;
#[path = "ingest/sender.rs"]
mod sender;
mod support;

use bare::Bare;
use criterion::Criterion;
use melissa_core::buffer::{Buffer, BufferConfig, Kind};
use melissa_core::session::{DataType, Session, SessionConfig};
use melissa_core::wire::auth::StudyKey;
use melissa_core::wire::header::HEADER_SIZE;
use melissa_core::wire::local;
use sender::Sender;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::{Bar, Comparison, report};

const SIZES: [usize; 4] = [4_000, 40_000, 400_000, 4_000_000];
const CONNECTIONS: [usize; 4] = [1, 8, 64, 1000];
/// Of one run of one side, if a sample of each connection is not more.
const RUN_BYTES: usize = 256 << 20;
const SLAB_BYTES: usize = 256 << 20;
/// How long the sampler sleeps.
const TICK: Duration = Duration::from_micros(500);
/// What about comes while it sleeps.
const TICK_BYTES: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Tcp,
    Unix,
}

/// What one run took.
pub struct Cost {
    end: Instant,
    /// Of the receiving thread.
    cpu: f64,
}

/// CPU time of a thread of this process, or of this thread.
pub fn thread_seconds(thread: Option<i32>) -> f64 {
    // How the kernel names the CPU clock of a thread.
    let clock = thread.map_or(libc::CLOCK_THREAD_CPUTIME_ID, |thread| (!thread << 3) | 6);
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local structure of the type that the call fills.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The number of the youngest thread of this name.
fn thread_named(name: &str) -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("this process has threads");
    let numbers = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    let is_named = |number: &i32| {
        std::fs::read_to_string(format!("/proc/self/task/{number}/comm"))
            .is_ok_and(|comm| comm.trim() == name)
    };
    numbers.filter(is_named).max().expect("the thread runs")
}

/// Takes out of the FIFO what has come.
struct Sampler {
    /// Samples taken in one burst at most.
    limit: Arc<AtomicUsize>,
    /// When so many were taken in all, the time is told.
    target: Arc<AtomicU64>,
    reached: Mutex<Receiver<Instant>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    fn start(buffer: Arc<Buffer>) -> Self {
        let (tell, reached) = channel();
        let limit = Arc::new(AtomicUsize::new(usize::MAX));
        let target = Arc::new(AtomicU64::new(u64::MAX));
        let over = Arc::new(AtomicBool::new(false));
        let shared = (Arc::clone(&limit), Arc::clone(&target), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let (limit, target, over) = shared;
            let mut taken = 0;
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                for _ in 0..buffer.population().min(limit.load(Ordering::Relaxed)) {
                    drop(buffer.get(None).expect("a sample is there"));
                    taken += 1;
                }
                if taken >= target.load(Ordering::Relaxed) {
                    target.store(u64::MAX, Ordering::Relaxed);
                    let _ = tell.send(Instant::now());
                }
            }
        });
        Self { limit, target, reached: Mutex::new(reached), over, thread: Some(thread) }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Both sides, and the process that sends to them.
struct Sides {
    sender: Sender,
    bare: Bare,
    sampler: Sampler,
    session: Session,
    session_thread: i32,
    connections: usize,
    /// Of each connection and run.
    samples: u64,
    sent: u64,
}

impl Sides {
    fn start(transport: Transport, connections: usize, bytes: usize, buffers: usize) -> Self {
        let key = StudyKey::from_bytes(&sender::KEY).expect("a key of 32 bytes");
        let config = SessionConfig {
            data_type: DataType::AsSent,
            // So many that none of the runs ends a simulation.
            nb_time_steps: Some(1 << 40),
            ..SessionConfig::new(key.clone(), 1, vec![sender::FIELD.into()], 2, connections as u32)
        };
        let buffer = BufferConfig {
            kind: Kind::Fifo,
            capacity: SLAB_BYTES / bytes,
            watermark: 0,
            pseudo_epochs: 1,
            batch_size: 1,
            seed: 5,
            assembly_slots: (SLAB_BYTES / bytes).min(connections),
            lent_slots: Some(1),
        };
        let buffer = Arc::new(Buffer::new(buffer).expect("a valid configuration"));
        let session = Session::start(config, Arc::clone(&buffer)).expect("the session listens");
        for simulation in 0..connections as u32 {
            session.register(simulation, 1, 0, vec![1.0, 2.0]).expect("it is planned");
        }
        let bare = Bare::start(transport, connections, HEADER_SIZE + bytes, buffers);
        let address = match transport {
            Transport::Tcp => session.address().to_owned(),
            Transport::Unix => local::socket(&key, 1, session.address()).to_string_lossy().into_owned(),
        };
        let sender = Sender::start(connections, bytes, &address, &bare.address);
        let samples = (RUN_BYTES / bytes / connections).max(1) as u64;
        let session_thread = thread_named("melissa-session");
        Self {
            sender,
            bare,
            sampler: Sampler::start(buffer),
            session,
            session_thread,
            connections,
            samples,
            sent: 0,
        }
    }

    /// Samples per second, and per CPU second of the thread that receives them.
    fn rates(&self, start: Instant, cost: &Cost) -> [f64; 2] {
        let samples = (self.samples * self.connections as u64) as f64;
        [samples / cost.end.duration_since(start).as_secs_f64(), samples / cost.cpu]
    }

    fn bound(&mut self) -> [f64; 2] {
        let start = Instant::now();
        self.bare.order(self.samples);
        self.sender.send("bound", self.samples);
        self.rates(start, &self.bare.cost())
    }

    fn ours(&mut self) -> [f64; 2] {
        let (start, cpu) = (Instant::now(), thread_seconds(Some(self.session_thread)));
        self.send(self.samples);
        let end = self.received();
        self.rates(start, &Cost { end, cpu: thread_seconds(Some(self.session_thread)) - cpu })
    }

    /// Has so many samples of each connection sent to the session.
    fn send(&mut self, samples: u64) {
        self.sent += samples * self.connections as u64;
        self.sampler.target.store(self.sent, Ordering::Relaxed);
        self.sender.send("ours", samples);
    }

    fn received(&self) -> Instant {
        self.sampler.reached.lock().expect("nobody panicked with it").recv().expect("the sampler lives")
    }

    /// Complete time steps of each simulation, all at one moment.
    fn steps(&self, steps: &mut HashMap<u32, u64>) {
        for state in self.session.changes(Duration::ZERO).expect("the session lives") {
            steps.insert(state.simulation_id, state.steps_complete);
        }
    }

    /// Jain's index over the samples that each connection has brought since all have work and until one had brought 100
    /// on the average, with 20 more to come.
    fn fairness(&mut self) -> f64 {
        let (mut before, mut after) = (HashMap::new(), HashMap::new());
        self.steps(&mut before);
        after.clone_from(&before);
        self.send(300);
        let brought = loop {
            std::thread::sleep(Duration::from_millis(1));
            self.steps(&mut after);
            let brought: Vec<u64> =
                after.iter().map(|(id, steps)| steps - before.get(id).unwrap_or(&0)).collect();
            if brought.iter().sum::<u64>() >= 110 * self.connections as u64 {
                break brought;
            }
        };
        assert!(brought.iter().all(|&steps| steps < 300), "all are live");
        assert_eq!(brought.len(), self.connections);
        let (fewest, most) = (brought.iter().min(), brought.iter().max());
        println!("samples per connection: {fewest:?} to {most:?}");
        self.received();
        let sum: f64 = brought.iter().map(|&steps| steps as f64).sum();
        let squares: f64 = brought.iter().map(|&steps| (steps as f64).powi(2)).sum();
        sum * sum / (self.connections as f64 * squares)
    }
}

fn name(transport: Transport, connections: usize, bytes: usize) -> String {
    let size =
        if bytes < 1_000_000 { format!("{} kB", bytes / 1000) } else { format!("{} MB", bytes / 1_000_000) };
    let plural = if connections == 1 { "" } else { "s" };
    format!("ingest, {transport:?}, {connections} connection{plural}, {size}")
}

/// The session beside the bare loop.
fn rates(criterion: &mut Criterion, transport: Transport, connections: usize, bytes: usize) {
    let barred = matches!((connections, bytes), (1, 40_000 | 4_000_000) | (1000, 40_000));
    Comparison {
        what: &name(transport, connections, bytes),
        unit: "1/s",
        bar: if barred && transport == Transport::Tcp { Bar::AtLeast(0.9) } else { Bar::None },
        figures: ["samples", "samples per CPU second"],
        seconds: 2.0,
    }
    .run(criterion, || Sides::start(transport, connections, bytes, 1), Sides::bound, Sides::ours);
}

/// The session beside a bare loop that receives into other memory each time, as the session has to: a sample in memory is
/// not overwritten by the next. The loop has as many buffers as samples come while the sampler sleeps.
fn kept(criterion: &mut Criterion, transport: Transport, connections: usize, bytes: usize) {
    let buffers = (TICK_BYTES / bytes).max(connections.max(3));
    Comparison {
        what: &format!("{}, bound into {buffers} buffers", name(transport, connections, bytes)),
        unit: "1/s",
        bar: Bar::None,
        figures: ["samples", "samples per CPU second"],
        seconds: 2.0,
    }
    .run(criterion, || Sides::start(transport, connections, bytes, buffers), Sides::bound, Sides::ours);
}

/// The session over its Unix socket beside itself over TCP.
fn transports(criterion: &mut Criterion, connections: usize, bytes: usize) {
    let what = name(Transport::Unix, connections, bytes);
    Comparison {
        what: &format!("{what}, to TCP"),
        unit: "1/s",
        bar: Bar::None,
        figures: ["samples", "samples per CPU second"],
        seconds: 2.0,
    }
    .run(
        criterion,
        || [Transport::Tcp, Transport::Unix].map(|transport| Sides::start(transport, connections, bytes, 1)),
        |[tcp, _]| tcp.ours(),
        |[_, unix]| unix.ours(),
    );
}

/// Flat out, and behind a full buffer, where the session decides whose sample comes next.
fn fairness(transport: Transport) {
    let mut sides = Sides::start(transport, 1000, 40_000, 1);
    sides.ours();
    let what = name(transport, 1000, 40_000);
    report(&format!("{what}, Jain's index"), sides.fairness(), 1.0, "", Bar::AtLeast(0.99));
    sides.sampler.limit.store(15, Ordering::Relaxed);
    report(&format!("{what}, buffer full, Jain's index"), sides.fairness(), 1.0, "", Bar::AtLeast(0.99));
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((sender::ARGUMENT, rest)) =
        arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return sender::run(rest);
    }
    let mut criterion = support::criterion();
    for transport in [Transport::Tcp, Transport::Unix] {
        for connections in CONNECTIONS {
            for bytes in SIZES {
                rates(&mut criterion, transport, connections, bytes);
            }
        }
    }
    for (connections, bytes) in [(1, 4_000), (1, 40_000), (1, 400_000), (1, 4_000_000), (1000, 40_000)] {
        kept(&mut criterion, Transport::Tcp, connections, bytes);
        transports(&mut criterion, connections, bytes);
    }
    // No times, and so not criterion's: with all the others, or by the filter `fairness`.
    if arguments.iter().all(|argument| argument == "--bench" || argument == "fairness") {
        fairness(Transport::Tcp);
        fairness(Transport::Unix);
    }
    criterion.final_summary();
}
