//! The data plane of Melissa: from the socket to the batch, without Python.
//!
//! A server rank owns one [`session::Session`] (the receiving thread) and one [`buffer::Buffer`] (the training
//! buffer on its slab). The session reads message bodies straight into slots of the slab and publishes complete
//! samples; samplers draw, pin and copy them into batches. Bytes are copied twice: kernel to slot, slot to batch.

pub mod batch;
mod bound;
pub mod buffer;
pub mod checkpoint;
mod draw;
pub mod error;
pub mod heartbeat;
pub mod ledger;
mod memory;
#[cfg(all(test, any(loom, shuttle)))]
mod models;
mod planted;
mod policy;
pub mod prefetch;
mod publish;
mod rng;
mod sample;
pub mod schema;
pub mod session;
mod slab;
pub mod slot;
pub mod snapshot;
pub mod statistics;
mod sync;
#[cfg(tsan)]
mod tsan;
pub mod wire;
