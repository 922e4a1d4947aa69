//! The client against a server that each test writes as a script.
#![allow(clippy::unwrap_used, clippy::panic)]

mod failing;
mod sending;
mod server;
