//! The client against a server that each test writes as a script, and, for the Unix socket, against the real session.
#![allow(clippy::unwrap_used, clippy::panic)]

mod failing;
mod local;
mod ranks;
mod ranks_by_hand;
mod ranks_property;
mod sending;
mod server;
