//! The sessions of one to three server ranks over real sockets, against peers that do anything in any order.
//!
//! The first byte of an input says which server ranks there are. The rest is a list of operations on five peers of each
//! of them: a stranger, the rank of a simulation of one rank, the ranks of one of two, and a second connection of the
//! first. Each operation is a byte that says what, one that says who and where, and what it needs (see
//! [`Play::operation`]); what the control plane does is one of them, on one server rank alone. `seeds.py` beside this folder
//! writes the frames under `tests/data/wire` in this form. After each input every connection is closed, and then: nothing is
//! connected, every slot of each slab is free again, the ledgers' sums agree, and an honest client is served by all.
#![no_main]

#[allow(dead_code)]
#[path = "../../melissa-core/tests/session/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../../melissa-core/tests/session/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "../../melissa-core/tests/session/study.rs"]
mod study;

use client::{Client, Identity, expect, open, write_message};
use libfuzzer_sys::fuzz_target;
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, SessionError};
use melissa_core::wire::auth::{Side, Transcript, prove};
use melissa_core::wire::distribution::{Distribution, Steps};
use melissa_core::wire::handshake::{Challenge, FieldShare, Hello, Join, Proof, parse};
use melissa_core::wire::header::{FLAG_PAYLOAD_CRC, HEADER_SIZE, Header, Kind};
use server::Server;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use study::{FIELDS, Study, bytes_of, config, fifo, key, send_step};

/// The server ranks that an input may meet, and which of them gets a time step.
const SERVERS: [(u32, Distribution); 4] = [
    (1, Distribution::RoundRobin),
    (2, Distribution::RoundRobin),
    (3, Distribution::RoundRobin),
    (2, Distribution::Simulation),
];

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
    server: Server,
    /// The first simulation that no input has had.
    next: u32,
}

impl World {
    fn start((nb_ranks, distribution): (u32, Distribution)) -> Self {
        let config =
            SessionConfig { nb_time_steps: Some(STEPS), payload_crc: true, distribution, ..config(PLANNED) };
        let world = Self { server: Server::start(nb_ranks, &config, &fifo(CAPACITY, ASSEMBLY)), next: 1 };
        // The schema is that of an honest client: the first that joins decides on it.
        world.honest(0);
        world
    }

    fn ranks(&self) -> &[Study] {
        &self.server.ranks
    }

    /// A client that does what it should gets what it should.
    fn honest(&self, simulation: u32) {
        self.server.register(simulation, 1, 0).expect("nobody has had this simulation");
        let mut clients: Vec<Client> =
            self.ranks().iter().map(|study| study.joined(Identity::of(simulation))).collect();
        let steps = 2 * clients.len() as u64;
        for step in 0..steps {
            let owner = self.server.owner(simulation, step);
            assert!(send_step(&mut clients[owner], 0, step));
            assert_eq!(self.ranks()[owner].get(), Some(key(simulation, 0, step)));
        }
        for client in &mut clients {
            client.finalize(steps).expect("all steps are in memory");
        }
        for study in self.ranks() {
            study.session.confirm(simulation).expect("every server rank has finished it");
        }
    }
}

fn counters(study: &Study) -> melissa_core::session::Counters {
    let counters = study.session.counters();
    let alive = study.session.changes(Duration::ZERO);
    assert!(alive.is_ok(), "the session has ended: {alive:?}");
    counters
}

/// Empties the training buffer until nobody is connected and nothing waits.
fn settle(study: &Study) {
    let start = Instant::now();
    loop {
        while study.buffer.population() > 0 {
            drop(study.buffer.get(Some(Instant::now() + PATIENCE)));
        }
        let counters = counters(study);
        let waiting = counters.connections + counters.handshakes_pending + counters.samples_waiting;
        if waiting == 0 && study.buffer.population() == 0 {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "something is left behind: {counters:?}");
        std::thread::yield_now();
    }
}

/// Every slot can be had.
fn all_slots_are_free(study: &Study) {
    let total = study.buffer.slot_counts().total();
    let slots: Vec<_> = std::iter::from_fn(|| study.buffer.take_slot()).collect();
    assert_eq!(slots.len(), total, "slots are lost");
}

fn sums_agree(study: &Study) {
    let (sums, counters) = (study.session.ledger_sums(), study.session.counters());
    assert!(sums.declared >= sums.trained + sums.dropped() && sums.declared >= sums.complete, "{sums:?}");
    assert_eq!(sums.complete, counters.samples_received, "{sums:?}");
    assert_eq!(sums.duplicates_refused, counters.duplicates_refused, "{sums:?}");
    for text in study.refusals() {
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.chars().count() < 8000, "{} characters", text.chars().count());
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
    /// The time steps that belong to the server rank.
    steps: Steps,
    /// Of these, the number of the one that an honest rank would send next, and the field.
    next: (u64, usize),
}

impl Peer {
    fn new(who: Identity, server: &Server, rank: usize) -> Self {
        let steps = server.distribution.steps_of(who.simulation, rank as u32, server.ranks.len() as u32);
        Self { who, stream: None, honest: Honest::Absent, hello: None, challenge: None, steps, next: (0, 0) }
    }

    /// The time step that an honest rank would send next; a server rank that gets none is sent one all the same.
    fn time_step(&self) -> u64 {
        self.steps.at(self.next.0).min(u64::from(u32::MAX))
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
        let (step, field) = (self.time_step(), self.next.1);
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

/// The peers of one server rank.
struct Place<'a> {
    study: &'a Study,
    address: &'a str,
    peers: [Peer; PEERS],
    /// Attempt and draw of the two simulations.
    attempts: [(u32, u32); 2],
    stopped: bool,
}

impl<'a> Place<'a> {
    fn new(world: &'a World, server: usize, first: u32) -> Self {
        let study = &world.ranks()[server];
        for simulation in [first, first + 1] {
            study.register(simulation, 1, 0);
        }
        let (one, two) = (Identity::of(first), Identity::of(first + 1));
        let stranger = Identity::of(u32::MAX).rank(u32::MAX - 1, u32::MAX);
        let peer = |who| Peer::new(who, &world.server, server);
        let peers = [stranger, one.clone(), two.clone().rank(0, 2), two.rank(1, 2), one].map(peer);
        Self { study, address: study.session.address(), peers, attempts: [(1, 0); 2], stopped: false }
    }

    /// One operation of an input, on a peer of this server rank.
    fn operation(&mut self, what: u8, who: usize, script: &mut Script<'_>) {
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
                    0 => peer.time_step(),
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
            12 => drop(counters(self.study)),
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
            14 => drop(self.study.buffer.get(Some(Instant::now()))),
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
        let session = &self.study.session;
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
            4 => session.abandon_attempt(simulation).expect("the simulation is known"),
            // Final from now on, if it was finished here.
            5 => match session.confirm(simulation) {
                Ok(()) => {
                    let parameters = study::parameters(simulation, *draw);
                    let again = session.register(simulation, *attempt + 1, *draw, parameters);
                    assert!(again.is_err(), "a final simulation was opened again");
                }
                Err(SessionError::Simulation(text)) => {
                    assert!(text.contains("cannot be confirmed"), "{text}")
                }
                Err(error) => panic!("{error}"),
            },
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
    let mut places: Vec<Place<'_>> =
        (0..world.ranks().len()).map(|server| Place::new(world, server, first)).collect();
    let mut script = Script(input);
    for _ in 0..64 {
        if script.0.is_empty() {
            break;
        }
        let (what, who) = (script.byte(), usize::from(script.byte()));
        let server = who / PEERS % places.len();
        places[server].operation(what, who % PEERS, &mut script);
    }
    let stopped: Vec<bool> = places.iter().map(|place| place.stopped).collect();
    drop(places);
    for study in world.ranks() {
        settle(study);
        for simulation in [first, first + 1] {
            study.session.finish(simulation, Reason::ClientFailed).expect("the simulation is known");
        }
        all_slots_are_free(study);
        sums_agree(study);
    }
    if stopped.contains(&true) {
        for (study, _) in world.ranks().iter().zip(&stopped).filter(|(_, stopped)| **stopped) {
            let who = Identity::of(first + 2);
            let (code, _) = Client::connect(study.session.address(), who).err().expect("no more").refused();
            assert_eq!(code, "stopped");
        }
        world.next = PLANNED;
    } else {
        world.honest(first + 2);
        world.ranks().iter().for_each(all_slots_are_free);
    }
}

static WORLDS: Mutex<[Option<World>; SERVERS.len()]> = Mutex::new([const { None }; SERVERS.len()]);

fuzz_target!(|input: &[u8]| {
    let Some((which, input)) = input.split_first() else { return };
    let which = usize::from(*which) % SERVERS.len();
    let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    let usable = worlds[which].take().filter(|world| world.next + PER_INPUT <= PLANNED);
    let mut world = usable.unwrap_or_else(|| World::start(SERVERS[which]));
    play(&mut world, input);
    worlds[which] = Some(world);
});
