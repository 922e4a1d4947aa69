//! One connection: its socket, how far its current frame has been read, and what is still to be written.

use super::socket::{Peer, Socket};
use crate::schema::Dtype;
use crate::wire::handshake::Hello;
use crate::wire::header::{HEADER_SIZE, Header, MAGIC};
use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::time::Instant;

/// A place in the table of connections; the generation tells its tenants apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct ConnectionId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// What a read brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Came {
    Bytes(usize),
    /// Nothing more is there now.
    Dry,
    /// The peer has closed its side.
    End,
}

/// What the bytes that come next are.
#[derive(Debug)]
pub(super) enum Input {
    /// The header of a frame.
    Header,
    /// The payload of a control frame; the vector grows as bytes come.
    Control { header: Header, payload: Vec<u8> },
    /// Nothing yet: a data frame waits for its place in a slot.
    Placing(Header),
    /// A data frame's body, into the slot of its simulation.
    Body { header: Header, place: Place, have: usize },
    /// A body that nobody wants.
    Discard { left: u64 },
}

/// Where a body belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) field: usize,
    /// First byte in the field.
    pub(super) start: usize,
    pub(super) len: usize,
}

/// What a rank that may send data sends of one field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) dtype: Dtype,
    pub(super) offset: u64,
    pub(super) count: u64,
}

/// Why nothing is read from a connection now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// Its simulation has no slot.
    Slot,
    /// It runs ahead of its simulation's lowest incomplete step.
    Step,
}

/// How far a rank that has proved the key has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// It has not said what its fields are.
    Accepted,
    /// It has, and waits for the other ranks or for a promised slot.
    Joining,
    /// Its fields in the order of the study's.
    Streaming(Vec<Share>),
    Finalized,
    /// It was told that the study stops; what it sends is counted and thrown away.
    Stopped,
}

/// A rank of a client.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) simulation: u32,
    pub(super) draw: u32,
    pub(super) attempt: u32,
    pub(super) rank: u32,
    pub(super) host: String,
    pub(super) phase: Phase,
    pub(super) wait: Option<Wait>,
    /// A duplicate of it was reported; further ones are only counted.
    pub(super) duplicate_told: bool,
}

/// Who is at the other end.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nobody knows: no `Hello` yet.
    Unknown,
    /// It has called, and has not proved the key.
    Challenged {
        hello: Box<Hello>,
        server_nonce: [u8; 32],
    },
    Member(Member),
    /// It was refused: it may read why, and what it sends is thrown away.
    Lingering,
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    pub(super) peer: Peer,
    pub(super) stage: Stage,
    pub(super) input: Input,
    pub(super) header: [u8; HEADER_SIZE],
    pub(super) header_have: usize,
    /// Bytes of the payload that came with its header, before anybody had looked at that.
    pub(super) early: usize,
    /// Bytes of frames that are still to be written; a handful of small frames at most.
    output: Vec<u8>,
    written: usize,
    output_ends: bool,
    output_ended: bool,
    /// The kernel may hold bytes for us (edge-triggered: it says so once).
    readable: bool,
    /// The kernel said that the peer closed: a short read is then not the end of it.
    pub(super) peer_closed: bool,
    /// On the ready list.
    pub(super) queued: bool,
    /// It has proved the study key.
    pub(super) authenticated: bool,
    /// When a handshake or a farewell has taken too long.
    pub(super) deadline: Option<Instant>,
    /// When bytes came last, or when the session became willing to read again.
    pub(super) heard: Instant,
    pub(super) bytes_received: u64,
}

impl Connection {
    pub(super) fn new(socket: Socket, peer: Peer, now: Instant, deadline: Instant) -> Self {
        Self {
            socket,
            peer,
            stage: Stage::Unknown,
            input: Input::Header,
            header: [0; HEADER_SIZE],
            header_have: 0,
            early: 0,
            output: Vec::new(),
            written: 0,
            output_ends: false,
            output_ended: false,
            readable: true,
            peer_closed: false,
            queued: false,
            authenticated: false,
            deadline: Some(deadline),
            heard: now,
            bytes_received: 0,
        }
    }

    pub(super) const fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    pub(super) const fn became_readable(&mut self) {
        self.readable = true;
    }

    pub(super) const fn member(&self) -> Option<&Member> {
        match &self.stage {
            Stage::Member(member) => Some(member),
            _ => None,
        }
    }

    pub(super) const fn member_mut(&mut self) -> Option<&mut Member> {
        match &mut self.stage {
            Stage::Member(member) => Some(member),
            _ => None,
        }
    }

    pub(super) fn waits(&self) -> bool {
        self.member().is_some_and(|member| member.wait.is_some())
    }

    /// Whether a turn would do something.
    pub(super) fn has_work(&self) -> bool {
        !self.waits()
            && (self.readable
                || match &self.input {
                    Input::Header => self.header_have == HEADER_SIZE,
                    Input::Placing(_) => true,
                    Input::Control { header, payload } => payload.len() == header.payload_len(),
                    Input::Body { place, have, .. } => *have == place.len,
                    Input::Discard { left } => *left == 0,
                })
    }

    /// Who it is, for errors and the log.
    pub(super) fn describe(&self) -> String {
        match &self.stage {
            Stage::Member(member) => format!(
                "rank {} of simulation {} (attempt {}, host {}, {})",
                member.rank, member.simulation, member.attempt, member.host, self.peer
            ),
            Stage::Challenged { hello, .. } => format!(
                "a peer at {} that calls itself rank {} of simulation {} (attempt {}, host {})",
                self.peer, hello.rank, hello.simulation, hello.attempt, hello.host
            ),
            Stage::Unknown | Stage::Lingering => format!("a peer at {}", self.peer),
        }
    }

    /// How far the current frame has come, for a connection that broke off; `None` between two frames.
    pub(super) fn torn_frame(&self) -> Option<String> {
        match &self.input {
            Input::Header if self.header_have == 0 => None,
            Input::Header => Some(format!("{} of {HEADER_SIZE} bytes of a header", self.header_have)),
            Input::Control { header, payload } => Some(format!(
                "{} of {} bytes of a {} frame",
                payload.len(),
                header.payload_length,
                header.kind
            )),
            Input::Placing(header) => Some(format!(
                "none of the {} bytes of field {} of time step {}",
                header.payload_length, header.field, header.time_step
            )),
            Input::Body { header, have, .. } => Some(format!(
                "{have} of {} bytes of field {} of time step {}",
                header.payload_length, header.field, header.time_step
            )),
            Input::Discard { left } => Some(format!("all but {left} bytes of a body that was not wanted")),
        }
    }

    /// What one read says about the socket; `None`: it was interrupted and is to be done again.
    fn came(&mut self, wanted: usize, result: io::Result<usize>) -> io::Result<Option<Came>> {
        match result {
            Ok(0) => Ok(Some(Came::End)),
            Ok(bytes) => {
                // A short read has emptied the kernel's buffer, and the next bytes bring the next event. Not so once
                // the peer has closed, whose event came already.
                if bytes < wanted && !self.peer_closed {
                    self.readable = false;
                }
                self.bytes_received += bytes as u64;
                Ok(Some(Came::Bytes(bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Some(Came::Dry))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads more of a header.
    pub(super) fn read_header(&mut self) -> io::Result<Came> {
        loop {
            let rest = &mut self.header[self.header_have..];
            let wanted = rest.len();
            let result = self.socket.read(rest);
            if let Some(came) = self.came(wanted, result)? {
                if let Came::Bytes(bytes) = came {
                    self.header_have += bytes;
                }
                return Ok(came);
            }
        }
    }

    /// Whether the bytes of the header so far can be those of a frame.
    pub(super) fn header_may_be_ours(&self) -> bool {
        let have = self.header_have.min(MAGIC.len());
        self.header[..have] == MAGIC[..have]
    }

    /// Reads into `bytes`, which is not empty.
    pub(super) fn read_bytes(&mut self, bytes: &mut [u8]) -> io::Result<Came> {
        loop {
            let result = self.socket.read(bytes);
            if let Some(came) = self.came(bytes.len(), result)? {
                return Ok(came);
            }
        }
    }

    /// Reads the rest of a body, which is not empty, and the header that follows it in one call; returns the bytes
    /// of the body.
    pub(super) fn read_body(&mut self, rest: &mut [u8]) -> io::Result<Came> {
        debug_assert_eq!(self.header_have, 0);
        let wanted = rest.len() + HEADER_SIZE;
        loop {
            let mut parts = [IoSliceMut::new(rest), IoSliceMut::new(&mut self.header)];
            let result = self.socket.read_vectored(&mut parts);
            if let Some(came) = self.came(wanted, result)? {
                return Ok(match came {
                    Came::Bytes(bytes) => {
                        self.header_have = bytes.saturating_sub(rest.len());
                        Came::Bytes(bytes.min(rest.len()))
                    }
                    other => other,
                });
            }
        }
    }

    /// Reads the next frame in one call where it is known beforehand: its header, its body into `body`, and the header
    /// behind it, so that a short read tells that there is no more. The first header is returned once it is whole.
    pub(super) fn read_frame(&mut self, body: &mut [u8]) -> io::Result<(Came, Option<[u8; HEADER_SIZE]>)> {
        debug_assert!(self.header_have == 0 && self.early == 0);
        let wanted = HEADER_SIZE + body.len() + HEADER_SIZE;
        let mut header = [0; HEADER_SIZE];
        loop {
            let mut parts =
                [IoSliceMut::new(&mut header), IoSliceMut::new(body), IoSliceMut::new(&mut self.header)];
            let result = self.socket.read_vectored(&mut parts);
            let Some(came) = self.came(wanted, result)? else { continue };
            return Ok(match came {
                Came::Bytes(bytes) if bytes >= HEADER_SIZE => {
                    self.early = (bytes - HEADER_SIZE).min(body.len());
                    self.header_have = bytes - HEADER_SIZE - self.early;
                    (came, Some(header))
                }
                Came::Bytes(bytes) => {
                    self.header = header;
                    self.header_have = bytes;
                    (came, None)
                }
                other => (other, None),
            });
        }
    }

    /// Appends a frame to what is to be written.
    pub(super) fn send(&mut self, frame: &[u8]) {
        if !self.output_ends {
            self.output.extend_from_slice(frame);
        }
    }

    /// Nothing more will be sent: the peer sees the end of the stream behind what was.
    pub(super) const fn end_output(&mut self) {
        self.output_ends = true;
    }

    /// Writes what the kernel takes now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match self.socket.write(&self.output[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        (self.output, self.written) = (Vec::new(), 0);
        if self.output_ends && !std::mem::replace(&mut self.output_ended, true) {
            return self.socket.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}
