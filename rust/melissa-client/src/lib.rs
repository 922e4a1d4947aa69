//! The client of Melissa: what a solver calls to stream its time steps to the server.
//!
//! One [`Client`] is one rank of one simulation, with one connection. Its calls block, as a solver's do: a full
//! training buffer on the server stops the solver in [`Client::send`], which is the back-pressure of the study.
//! While they wait they notice what the server says (refused, stop), that it is gone, and an interrupt.
//!
//! ```no_run
//! use melissa_client::{Client, ClientConfig, Values};
//! use melissa_core::{schema::Dtype, wire::auth::StudyKey};
//!
//! let key = StudyKey::from_hex(&std::fs::read_to_string("study.key")?)?;
//! let config = ClientConfig { simulation: 3, ..ClientConfig::new("node-1:4000", key) };
//! let mut client = Client::connect(config, None)?;
//! client.init("temperature", 1000, Dtype::F64)?;
//! for _ in 0..100 {
//!     client.send("temperature", Values::F64(&[20.0; 1000]), None)?;
//! }
//! client.finalize(None)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod config;
mod connection;
mod error;
mod handshake;
mod os;
mod values;
mod wait;

pub use client::{Client, InitOutcome};
pub use config::ClientConfig;
pub use error::{ClientError, Doing, Endpoint};
pub use values::{Values, converts};
pub use wait::Interrupt;
