//! A session over real sockets, against peers that do anything in any order.
//!
//! An input is a list of operations on five peers: a stranger, the rank of a simulation of one rank, the ranks of one
//! of two, and a second connection of the first. Each operation is a byte that says what, one that says who, and what
//! it needs (see [`Play::operation`]); `seeds.py` beside this folder writes the frames under `tests/data/wire` in this
//! form. After each input every connection is closed, and then: nothing is connected, every slot of the slab is free
//! again, the ledger's sums agree, and an honest client is served.
#![no_main]

#[allow(dead_code)]
#[path = "../../melissa-core/tests/session/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../../melissa-core/tests/session/study.rs"]
mod study;

use client::{Client, Identity, expect, open, write_message};
use libfuzzer_sys::fuzz_target;
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::SessionConfig;
use melissa_core::wire::auth::{Side, Transcript, prove};
use melissa_core::wire::handshake::{Challenge, FieldShare, Hello, Join, Proof, parse};
use melissa_core::wire::header::{FLAG_PAYLOAD_CRC, HEADER_SIZE, Header, Kind};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use study::{FIELDS, Study, bytes_of, config, fifo, key, send_step};

/// Simulations of one session; then another one is started.
const PLANNED: u32 = 3000;
/// Of each input: one of one rank, one of two, and an honest one.
const PER_INPUT: u32 = 3;
/// Steps that a simulation may have.
const STEPS: u64 = 1000;
const CAPACITY: usize = 2;
const ASSEMBLY: usize = 2;
const PEERS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    study: Study,
    /// The first simulation that no input has had.
    next: u32,
}

impl World {
    fn start() -> Self {
        let config = SessionConfig { nb_time_steps: Some(STEPS), payload_crc: true, ..config(PLANNED) };
        let world = Self { study: Study::start(config, fifo(CAPACITY, ASSEMBLY)), next: 1 };
        // The schema is that of an honest client: the first that joins decides on it.
        world.honest(0);
        world
    }

    /// A client that does what it should gets what it should.
    fn honest(&self, simulation: u32) {
        self.study.register(simulation, 1, 0);
        let mut client = self.study.joined(Identity::of(simulation));
        for step in 0..2 {
            assert!(send_step(&mut client, 0, step));
            assert_eq!(self.study.get(), Some(key(simulation, 0, step)));
        }
        client.finalize(2).expect("two steps are in memory");
    }

    fn counters(&self) -> melissa_core::session::Counters {
        let counters = self.study.session.counters();
        let alive = self.study.session.changes(Duration::ZERO);
        assert!(alive.is_ok(), "the session has ended: {alive:?}");
        counters
    }

    /// Empties the training buffer until nobody is connected and nothing waits.
    fn settle(&self) {
        let start = Instant::now();
        loop {
            while self.study.buffer.population() > 0 {
                drop(self.study.buffer.get(Some(Instant::now() + PATIENCE)));
            }
            let counters = self.counters();
            let waiting = counters.connections + counters.handshakes_pending + counters.samples_waiting;
            if waiting == 0 && self.study.buffer.population() == 0 {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "something is left behind: {counters:?}");
            std::thread::yield_now();
        }
    }

    /// Every slot can be had.
    fn all_slots_are_free(&self) {
        let total = self.study.buffer.slot_counts().total();
        let slots: Vec<_> = std::iter::from_fn(|| self.study.buffer.take_slot()).collect();
        assert_eq!(slots.len(), total, "slots are lost");
    }

    fn sums_agree(&self) {
        let (sums, counters) = (self.study.session.ledger_sums(), self.study.session.counters());
        assert!(sums.declared >= sums.trained + sums.dropped() && sums.declared >= sums.complete, "{sums:?}");
        assert_eq!(sums.complete, counters.samples_received, "{sums:?}");
        assert_eq!(sums.duplicates_refused, counters.duplicates_refused, "{sums:?}");
        for text in self.study.refusals() {
            assert!(!text.chars().any(char::is_control), "{text:?}");
            assert!(text.chars().count() < 8000, "{} characters", text.chars().count());
        }
    }
}

/// What an input holds, byte by byte; zeros behind its end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.0.split_first().map_or((0, self.0), |(&byte, rest)| (byte, rest));
        self.0 = rest;
        byte
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Two bytes of length, then so many bytes or what there is.
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()) | usize::from(self.byte()) << 8;
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// How far a peer has come that has done nothing wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Honest {
    Absent,
    Connected,
    Challenged,
    Accepted,
    Joined,
    Welcomed,
}

struct Peer {
    who: Identity,
    stream: Option<TcpStream>,
    honest: Honest,
    hello: Option<Hello>,
    challenge: Option<Challenge>,
    /// The time step and the field that an honest rank would send next.
    next: (u64, usize),
}

impl Peer {
    fn new(who: Identity) -> Self {
        Self { who, stream: None, honest: Honest::Absent, hello: None, challenge: None, next: (0, 0) }
    }

    fn stream(&mut self, address: &str) -> &mut TcpStream {
        self.stream.get_or_insert_with(|| open(address))
    }

    /// What comes now is no longer what an honest client sends.
    fn write(&mut self, address: &str, bytes: &[u8]) {
        self.honest = Honest::Absent;
        // The server may have closed the connection long ago.
        let _ = self.stream(address).write_all(bytes);
    }

    /// Elements of this rank, and where they start.
    fn share(&self, field: usize) -> (u64, u64) {
        let each = FIELDS[field].2 / u64::from(self.who.size);
        (u64::from(self.who.rank) * each, each)
    }

    fn data(&self) -> (Header, Vec<u8>) {
        let (step, field) = self.next;
        let (offset, count) = self.share(field);
        let dtype = FIELDS[field].1;
        let body = bytes_of(key(self.who.simulation, 0, step), field, dtype, offset, count);
        let header = Header {
            dtype: Some(dtype),
            simulation: self.who.simulation,
            client_rank: self.who.rank,
            field: field as u32,
            flags: FLAG_PAYLOAD_CRC,
            time_step: step,
            element_offset: offset,
            element_count: count,
            payload_crc: crc32c::crc32c(&body),
            ..Header::control(Kind::Data, body.len() as u64)
        };
        (header, body)
    }

    fn advance(&mut self) {
        self.next = if self.next.1 + 1 < FIELDS.len() {
            (self.next.0, self.next.1 + 1)
        } else {
            (self.next.0 + 1, 0)
        };
    }

    /// Goes on honestly by one message; false when the server says something else than to an honest client.
    fn step_up(&mut self, address: &str) -> bool {
        let honest = match self.honest {
            Honest::Absent => {
                self.stream = None;
                self.next = (0, 0);
                self.stream(address);
                Honest::Connected
            }
            Honest::Connected => {
                let hello = self.who.hello();
                let stream = self.stream(address);
                write_message(stream, &hello);
                let Ok(payload) = expect(stream, Kind::Challenge) else { return false };
                self.challenge = Some(parse(&payload).expect("the server's challenge"));
                self.hello = Some(hello);
                Honest::Challenged
            }
            Honest::Challenged => {
                let proof = self.proof();
                let stream = self.stream(address);
                write_message(stream, &proof);
                let Ok(_) = expect(stream, Kind::Accepted) else { return false };
                Honest::Accepted
            }
            Honest::Accepted => {
                let fields = (0..FIELDS.len())
                    .map(|field| FieldShare {
                        name: FIELDS[field].0.into(),
                        dtype: FIELDS[field].1,
                        size: self.share(field).1,
                    })
                    .collect();
                write_message(self.stream(address), &Join { fields });
                Honest::Joined
            }
            // Of several ranks, the others may never join.
            Honest::Joined if self.who.size == 1 => {
                let Ok(_) = expect(self.stream(address), Kind::Welcome) else { return false };
                Honest::Welcomed
            }
            Honest::Joined | Honest::Welcomed => return false,
        };
        self.honest = honest;
        true
    }

    fn proof(&self) -> Proof {
        let (Some(hello), Some(challenge)) = (&self.hello, &self.challenge) else {
            return Proof { proof: [0; 32] };
        };
        let transcript = Transcript {
            protocol: hello.protocol,
            role: &hello.role,
            client_nonce: hello.nonce,
            server_nonce: challenge.nonce,
            study_epoch: hello.study_epoch,
            simulation: hello.simulation,
            attempt: hello.attempt,
            rank: hello.rank,
            size: hello.size,
        };
        Proof { proof: prove(&self.who.key, Side::Client, &transcript) }
    }

    fn bring(&mut self, address: &str, wanted: Honest) {
        while self.honest < wanted {
            if !self.step_up(address) {
                break;
            }
        }
    }
}

/// Bytes as a frame with the right magic, version and checksum; too short a header is filled up with zeros.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut frame = bytes.to_vec();
    frame.resize(bytes.len().max(HEADER_SIZE), 0);
    frame[..6].copy_from_slice(b"MLSA\x01\x00");
    let checksum = crc32c::crc32c(&frame[..60]);
    frame[60..HEADER_SIZE].copy_from_slice(&checksum.to_le_bytes());
    frame
}

struct Play<'a> {
    world: &'a World,
    address: &'a str,
    peers: [Peer; PEERS],
    /// Attempt and draw of the two simulations.
    attempts: [(u32, u32); 2],
    stopped: bool,
}

impl<'a> Play<'a> {
    fn new(world: &'a World, first: u32) -> Self {
        for simulation in [first, first + 1] {
            world.study.register(simulation, 1, 0);
        }
        let (one, two) = (Identity::of(first), Identity::of(first + 1));
        let stranger = Identity::of(u32::MAX).rank(u32::MAX - 1, u32::MAX);
        let peers = [stranger, one.clone(), two.clone().rank(0, 2), two.rank(1, 2), one].map(Peer::new);
        Self { world, address: world.study.session.address(), peers, attempts: [(1, 0); 2], stopped: false }
    }

    fn operation(&mut self, script: &mut Script<'_>) {
        let (what, who) = (script.byte(), usize::from(script.byte()) % PEERS);
        let (address, peer) = (self.address, &mut self.peers[who]);
        match what % 16 {
            // Goes on honestly as far as this.
            0 | 1 => {
                let wanted = match script.byte() % 6 {
                    0 => Honest::Connected,
                    1 => Honest::Challenged,
                    2 => Honest::Accepted,
                    3 => Honest::Joined,
                    _ => Honest::Welcomed,
                };
                peer.bring(address, wanted);
            }
            // Bytes as they are.
            2 => peer.write(address, script.bytes()),
            // A frame whose header is whole.
            3 => peer.write(address, &sealed(script.bytes())),
            // So many honest data frames.
            4 | 5 => {
                for _ in 0..script.byte() % 8 {
                    let (header, body) = peer.data();
                    peer.advance();
                    peer.write(address, &[&header.encode()[..], &body].concat());
                }
            }
            // An honest data frame with one number of its header changed, and its body.
            6 | 7 => {
                let (header, body) = peer.data();
                let mut bytes = header.encode();
                let at = 6 + usize::from(script.byte()) % 47;
                let number = script.number();
                let width = [1, 2, 4, 8][usize::from(script.byte()) % 4].min(HEADER_SIZE - 8 - at);
                bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
                peer.advance();
                peer.write(address, &[sealed(&bytes), body].concat());
            }
            // A part of an honest data frame, with a bit of it flipped perhaps.
            8 => {
                let (header, body) = peer.data();
                let mut bytes = [&header.encode()[..], &body].concat();
                let (end, flip) = (usize::from(script.byte()), script.byte());
                bytes.truncate(end);
                if let Some(byte) = bytes.get_mut(usize::from(flip)) {
                    *byte ^= 1;
                }
                peer.write(address, &bytes);
            }
            9 => {
                let steps = match script.byte() % 4 {
                    0 => peer.next.0,
                    1 => 0,
                    2 => u64::MAX,
                    _ => script.number(),
                };
                let finalize = Header {
                    simulation: peer.who.simulation,
                    client_rank: peer.who.rank,
                    time_step: steps,
                    ..Header::control(Kind::Finalize, 0)
                };
                peer.write(address, &finalize.encode());
            }
            // Closes: properly, in one direction, or with a reset.
            10 => {
                let how = script.byte() % 3;
                if let Some(stream) = &peer.stream {
                    match how {
                        0 => drop(stream.shutdown(Shutdown::Write)),
                        1 => drop(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))),
                        _ => {}
                    }
                }
                if how > 0 {
                    peer.stream = None;
                }
                peer.honest = Honest::Absent;
            }
            // The control plane: another attempt, another draw, or nothing more of a simulation.
            11 => self.control(script.byte()),
            // The session has had a turn with what came so far.
            12 => drop(self.world.counters()),
            // Reads what is there.
            13 => {
                // An answer that it would wait for may be gone now.
                peer.honest = Honest::Absent;
                if let Some(stream) = &mut peer.stream {
                    let _ = stream.set_nonblocking(true);
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.set_nonblocking(false);
                }
            }
            // A trainer takes a sample.
            14 => drop(self.world.study.buffer.get(Some(Instant::now()))),
            // A message of this rank with some of its values changed.
            _ => {
                let (kind, number) = (script.byte(), script.number());
                if kind % 2 == 0 {
                    let mut hello = peer.who.hello();
                    match kind / 2 % 6 {
                        0 => hello.rank = number as u32,
                        1 => (hello.rank, hello.size) = (number as u32, u32::MAX),
                        2 => hello.attempt = number as u32,
                        3 => hello.simulation = number as u32,
                        4 => hello.study_epoch = number,
                        _ => hello.protocol = number as u32,
                    }
                    peer.honest = Honest::Absent;
                    let address = self.address;
                    write_message(peer.stream(address), &hello);
                } else {
                    let dtype = Dtype::ALL[usize::from(kind / 2) % Dtype::ALL.len()];
                    let share = |name: &str, size| FieldShare { name: name.into(), dtype, size };
                    let fields = vec![share(FIELDS[0].0, number), share(FIELDS[1].0, FIELDS[1].2)];
                    peer.honest = Honest::Absent;
                    let address = self.address;
                    write_message(peer.stream(address), &Join { fields });
                }
            }
        }
    }

    fn control(&mut self, what: u8) {
        let session = &self.world.study.session;
        let which = usize::from(what) % 2;
        let simulation = self.peers[1 + which].who.simulation;
        let (attempt, draw) = &mut self.attempts[which];
        match what / 2 % 8 {
            redrawn @ 0..4 => {
                // Refused when the simulation is final or the study stops.
                let drawn = *draw + u32::from(redrawn == 0);
                let parameters = study::parameters(simulation, drawn);
                if session.register(simulation, *attempt + 1, drawn, parameters).is_ok() {
                    (*attempt, *draw) = (*attempt + 1, drawn);
                    for peer in self.peers.iter_mut().filter(|peer| peer.who.simulation == simulation) {
                        peer.who.attempt = *attempt;
                    }
                }
            }
            4 | 5 => session.abandon_attempt(simulation).expect("the simulation is known"),
            6 => session.finish(simulation, Reason::ClientFailed).expect("the simulation is known"),
            // Rare, as it ends the session with this input.
            _ if what > 240 => {
                session.stop().expect("the session is there");
                self.stopped = true;
            }
            _ => {}
        }
    }
}

fn play(world: &mut World, input: &[u8]) {
    let first = world.next;
    world.next += PER_INPUT;
    let mut play = Play::new(world, first);
    let mut script = Script(input);
    for _ in 0..64 {
        if script.0.is_empty() {
            break;
        }
        play.operation(&mut script);
    }
    let Play { peers, stopped, .. } = play;
    drop(peers);
    world.settle();
    for simulation in [first, first + 1] {
        world.study.session.finish(simulation, Reason::ClientFailed).expect("the simulation is known");
    }
    world.all_slots_are_free();
    world.sums_agree();
    if stopped {
        let who = Identity::of(first + 2);
        let (code, _) = Client::connect(world.study.session.address(), who).err().expect("no more").refused();
        assert_eq!(code, "stopped");
        world.next = PLANNED;
    } else {
        world.honest(first + 2);
        world.all_slots_are_free();
    }
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

fuzz_target!(|input: &[u8]| {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let mut now = world.take().filter(|world| world.next + PER_INPUT <= PLANNED).unwrap_or_else(World::start);
    play(&mut now, input);
    *world = Some(now);
});
