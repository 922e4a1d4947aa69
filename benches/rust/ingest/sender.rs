//! The process that sends: it keeps all connections busy with as little work as it can, so that the receiver is measured.
//!
//! It is this bench again, started with [`ARGUMENT`]. It holds two sets of connections, to the session ("ours") and to
//! the bare loop ("bound"), and sends the same frames on either: headers that are made per batch, and one payload in constant memory.

use melissa_core::schema::Dtype;
use melissa_core::wire::auth::Side;
use melissa_core::wire::auth::{StudyKey, Transcript, nonce, prove};
use melissa_core::wire::handshake::{
    Accepted, Challenge, FieldShare, Hello, Join, Message, Proof, Welcome, encode_frame, parse,
};
use melissa_core::wire::header::{HEADER_SIZE, Header, Kind};
use melissa_core::wire::{PROTOCOL, ROLE_CLIENT};
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// The first argument of the process that sends.
pub const ARGUMENT: &str = "--send";
pub const KEY: [u8; 32] = [7; 32];
pub const FIELD: &str = "u";
/// Samples of 4 kB are handed to the kernel several at a time; larger ones one by one, as a client does.
const BATCH_BYTES: usize = 32 * 1024;
/// Of each connection; a thousand autotuned ones would hold gigabytes.
const SEND_BUFFER_SIZE: usize = 256 * 1024;

/// The process, seen from the bench.
pub struct Sender {
    child: Child,
    commands: ChildStdin,
}

impl Sender {
    /// Starts it and waits until all its connections are there.
    pub fn start(connections: usize, bytes: usize, ours: &str, bound: &str) -> Self {
        let this = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(this)
            .args([ARGUMENT, &connections.to_string(), &bytes.to_string(), ours, bound])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the sender starts");
        let commands = child.stdin.take().expect("it is piped");
        let mut ready = [0];
        child.stdout.take().expect("it is piped").read_exact(&mut ready).expect("the sender connects");
        Self { child, commands }
    }

    /// Has so many samples sent on each connection of a set; does not wait for it.
    pub fn send(&mut self, set: &str, samples: u64) {
        writeln!(self.commands, "{set} {samples}").expect("the sender lives");
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The life of that process; ends when its standard input does.
pub fn run(arguments: &[String]) {
    let [connections, bytes, ours, bound] = arguments else { panic!("four arguments: {arguments:?}") };
    let connections: u32 = connections.parse().expect("a number of connections");
    let bytes: usize = bytes.parse().expect("a number of bytes");
    let payload = vec![1; bytes];
    let mut sets = [(ours, true), (bound, false)].map(|(address, greets)| {
        let sockets = (0..connections).map(|simulation| {
            let mut socket = connect(address);
            if greets {
                greet(&mut socket, simulation, bytes as u64 / 4);
            }
            socket
        });
        Set::new(sockets, bytes)
    });
    io::stdout().write_all(b"+").and_then(|()| io::stdout().flush()).expect("the bench reads");
    for line in io::stdin().lock().lines() {
        let line = line.expect("the bench writes lines");
        let (set, samples) = line.split_once(' ').expect("a set and a number");
        let samples = samples.parse().expect("a number of samples");
        sets[usize::from(set == "bound")].send(&payload, samples);
    }
}

/// A connection over TCP, or over the Unix socket that a path names.
fn connect(address: &str) -> Socket {
    let (domain, to) = match address.parse::<SocketAddr>() {
        Ok(address) => (Domain::IPV4, address.into()),
        Err(_) => (Domain::UNIX, SockAddr::unix(address).expect("a short path")),
    };
    let socket = Socket::new(domain, Type::STREAM, None).expect("descriptors are left");
    socket.set_send_buffer_size(SEND_BUFFER_SIZE).expect("the option is known");
    socket.connect(&to).expect("the receiver listens");
    if domain == Domain::IPV4 {
        socket.set_tcp_nodelay(true).expect("the option is known");
    }
    socket
}

/// One rank's handshake, up to the server's welcome.
fn greet(socket: &mut Socket, simulation: u32, elements: u64) {
    let key = StudyKey::from_bytes(&KEY).expect("a key of 32 bytes");
    let hello = Hello {
        protocol: PROTOCOL,
        software: "bench".into(),
        role: ROLE_CLIENT.into(),
        nonce: nonce().expect("the kernel has random bytes"),
        study_epoch: 1,
        simulation,
        attempt: 1,
        rank: 0,
        size: 1,
        host: "localhost".into(),
        pid: std::process::id(),
    };
    say(socket, &hello);
    let challenge: Challenge = hear(socket);
    let transcript = Transcript {
        protocol: hello.protocol,
        role: &hello.role,
        client_nonce: hello.nonce,
        server_nonce: challenge.nonce,
        study_epoch: hello.study_epoch,
        simulation,
        attempt: hello.attempt,
        rank: hello.rank,
        size: hello.size,
    };
    say(socket, &Proof { proof: prove(&key, Side::Client, &transcript) });
    let _: Accepted = hear(socket);
    say(socket, &Join { fields: vec![FieldShare { name: FIELD.into(), dtype: Dtype::F32, size: elements }] });
    let _: Welcome = hear(socket);
}

fn say<T: Message>(socket: &mut impl Write, message: &T) {
    socket.write_all(&encode_frame(T::KIND, message)).expect("the session reads");
}

fn hear<T: Message>(socket: &mut impl Read) -> T {
    let mut bytes = [0; HEADER_SIZE];
    socket.read_exact(&mut bytes).expect("the session answers");
    let header = Header::parse(&bytes).expect("a valid header");
    let mut payload = vec![0; header.payload_len()];
    socket.read_exact(&mut payload).expect("the session answers");
    assert_eq!(header.kind, T::KIND, "{}", String::from_utf8_lossy(&payload));
    parse(&payload).expect("a valid message")
}

/// The connections to one receiver.
struct Set {
    poll: Poll,
    events: Events,
    connections: Vec<Outgoing>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Self {
        match socket.domain() {
            Ok(Domain::UNIX) => Self::Unix(UnixStream::from_std(socket.into())),
            _ => Self::Tcp(TcpStream::from_std(socket.into())),
        }
    }
}

impl Stream {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(socket) => socket,
            Self::Unix(socket) => socket,
        }
    }

    fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write_vectored(pieces),
            Self::Unix(socket) => socket.write_vectored(pieces),
        }
    }
}

/// One connection, and the batch of frames that is being written to it.
struct Outgoing {
    socket: Stream,
    simulation: u32,
    /// Samples that are still to be sent, those of the batch not among them.
    left: u64,
    step: u64,
    headers: Vec<[u8; HEADER_SIZE]>,
    written: usize,
    /// Nothing more goes in until the kernel says so.
    full: bool,
}

impl Set {
    fn new(sockets: impl Iterator<Item = Socket>, bytes: usize) -> Self {
        let poll = Poll::new().expect("descriptors are left");
        let batch = (BATCH_BYTES / bytes).max(1);
        let connections: Vec<_> = sockets
            .enumerate()
            .map(|(index, socket)| {
                socket.set_nonblocking(true).expect("the option is known");
                let mut socket = Stream::from(socket);
                poll.registry()
                    .register(socket.source(), Token(index), Interest::WRITABLE)
                    .expect("descriptors are left");
                let headers = Vec::with_capacity(batch);
                Outgoing {
                    socket,
                    simulation: index as u32,
                    left: 0,
                    step: 0,
                    headers,
                    written: 0,
                    full: false,
                }
            })
            .collect();
        Self { poll, events: Events::with_capacity(1024), connections }
    }

    /// Sends on all connections in turn.
    fn send(&mut self, payload: &[u8], samples: u64) {
        let mut ready: VecDeque<usize> = (0..self.connections.len()).collect();
        let mut busy = ready.len();
        for connection in &mut self.connections {
            connection.left = samples;
        }
        while busy > 0 {
            for _ in 0..ready.len() {
                let Some(index) = ready.pop_front() else { break };
                let connection = &mut self.connections[index];
                if connection.write(payload) {
                    busy -= 1;
                } else if !connection.full {
                    ready.push_back(index);
                }
            }
            if ready.len() < busy {
                let timeout = if ready.is_empty() { None } else { Some(Duration::ZERO) };
                self.poll.poll(&mut self.events, timeout).expect("the poll works");
                for event in &self.events {
                    let Token(index) = event.token();
                    if std::mem::take(&mut self.connections[index].full) {
                        ready.push_back(index);
                    }
                }
            }
        }
    }
}

impl Outgoing {
    /// Hands as much of a batch to the kernel as it takes; true when all is sent.
    fn write(&mut self, payload: &[u8]) -> bool {
        let frame = HEADER_SIZE + payload.len();
        if self.headers.is_empty() {
            let batch = self.left.min(self.headers.capacity() as u64);
            self.left -= batch;
            for _ in 0..batch {
                let header = Header {
                    dtype: Some(Dtype::F32),
                    simulation: self.simulation,
                    time_step: self.step,
                    element_count: payload.len() as u64 / 4,
                    ..Header::control(Kind::Data, payload.len() as u64)
                };
                self.headers.push(header.encode());
                self.step += 1;
            }
        }
        let (first, skip) = (self.written / frame, self.written % frame);
        let mut pieces = Vec::with_capacity(2 * (self.headers.len() - first));
        for header in &self.headers[first..] {
            pieces.push(IoSlice::new(header));
            pieces.push(IoSlice::new(payload));
        }
        let mut rest = &mut pieces[..];
        IoSlice::advance_slices(&mut rest, skip);
        match self.socket.write(rest) {
            Ok(bytes) => self.written += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.full = true,
            Err(error) => panic!("the receiver is gone: {error}"),
        }
        if self.written == self.headers.len() * frame {
            self.headers.clear();
            self.written = 0;
        }
        self.headers.is_empty() && self.left == 0
    }
}
