//! What travels between a client and a server rank: frames of one 64-byte header and a payload.
//!
//! [`header`] is the fixed part of every frame, [`handshake`] the JSON payloads of the control frames, and
//! [`auth`] the mutual proof of the study key; [`local`] says where they find each other on one
//! host, and [`distribution`] which server rank a time step goes to. Everything here parses bytes of a peer that nobody trusts yet: every function is total, allocates nothing from a
//! length that came off the wire, and names the rule that was broken.
//! `docs/protocol.md` describes the same for authors of clients in other languages.

pub mod auth;
pub mod distribution;
pub mod handshake;
pub mod header;
mod hex;
pub mod local;

/// The version of the handshake and of the order of messages, in `Hello` and in `Challenge`.
pub const PROTOCOL: u32 = 1;

/// The role that a client rank states in `Hello` and proves.
pub const ROLE_CLIENT: &str = "client";
