//! Receiver and sampler together against the same two threads on disjoint memory, without any synchronisation.
//!
//! FIFO flat out: each side goes as fast as it can; a sample is drawn once, so neither can be faster than the other, and the
//! bound that holds for both is the slower of the two threads on disjoint memory. Reservoir: the receiver, and the bound's, put
//! one sample for every four that are drawn, since a reservoir's writer can be no faster than first sights are.

#![allow(clippy::expect_used, reason = "a bench that cannot go on has nothing to tidy up")]

mod support;

use melissa_core::batch::Batch;
use melissa_core::buffer::{Buffer, Kind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Duration;
use support::buffers::{self, Memory, Receiver, Walk};
use support::{Bar, Comparison};

/// Bytes of the slab, and of the memory of each of the bound's threads.
const SLAB: usize = 1 << 30;
const ROWS: usize = 10;
/// Bytes that the sampler copies in a run.
const RUN: usize = 320 << 20;

struct Sides {
    buffer: Buffer,
    batch: Batch,
    sampled: Memory,
    received: Memory,
    bytes: usize,
    draws_per_put: usize,
    /// The receiver that is to be woken when there is room.
    receiver: Arc<Mutex<Option<Thread>>>,
}

impl Sides {
    fn new(kind: Kind, bytes: usize) -> Self {
        let buffer = buffers::buffer(kind, SLAB / bytes, bytes, ROWS);
        buffers::fill(&buffer);
        let mut batch = buffers::batch(&buffer, ROWS);
        let draws_per_put = if kind == Kind::Reservoir { 4 } else { 1 };
        // A FIFO starts half full, a reservoir with as many samples seen as in the steady state.
        let batches = SLAB / bytes / ROWS;
        for _ in 0..if kind == Kind::Reservoir { batches * 14 / 10 } else { batches / 2 } {
            batch.clear();
            buffer.gather(&mut batch, None).expect("a filled buffer");
        }
        let receiver = Arc::new(Mutex::new(None::<Thread>));
        let sleeper = Arc::clone(&receiver);
        buffer.set_room_waker(Arc::new(move || {
            if let Some(thread) = &*sleeper.lock().expect("nobody panics with it") {
                thread.unpark();
            }
        }));
        Self {
            buffer,
            receiver,
            batch,
            sampled: Memory::new(SLAB),
            received: Memory::new(SLAB),
            bytes,
            draws_per_put,
        }
    }
}

/// Samples per second of both threads, the sampler's and the receiver's; `receive` says whether it put one.
fn rates(
    bytes: usize,
    draws_per_put: usize,
    mut batch: impl FnMut(),
    receive: impl FnMut() -> bool + Send,
    sleeper: Option<&Mutex<Option<Thread>>>,
) -> [f64; 2] {
    let draws = (RUN / bytes / ROWS).max(4) * ROWS;
    let drawn = AtomicUsize::new(0);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut receive = receive;
            if let Some(sleeper) = sleeper {
                *sleeper.lock().expect("nobody panics with it") = Some(thread::current());
            }
            let begin = buffers::now();
            let mut count = 0;
            // A quarter of the draws, or as many as the sampler's when both go flat out.
            while count < draws / draws_per_put {
                if draws_per_put > 1 && count * draws_per_put > drawn.load(Ordering::Relaxed) {
                    thread::yield_now();
                } else if receive() {
                    count += 1;
                } else if sleeper.is_some() {
                    // As a session sleeps in its poll until room is signalled.
                    thread::park_timeout(Duration::from_millis(1));
                }
            }
            count as f64 / (buffers::now() - begin)
        });
        let begin = buffers::now();
        for _ in 0..draws / ROWS {
            batch();
            drawn.fetch_add(ROWS, Ordering::Relaxed);
        }
        let sampler = draws as f64 / (buffers::now() - begin);
        [sampler, receiver.join().expect("the receiver ended well")]
    })
}

fn bound(sides: &mut Sides) -> [f64; 2] {
    let Sides { batch, sampled, received, bytes, draws_per_put, .. } = sides;
    let bytes = *bytes;
    let (mut from, mut to) = (Walk::new(sampled, bytes), Walk::new(received, bytes));
    let body = vec![7u8; bytes];
    let destination = batch.field_ptr(0) as usize;
    let sample = || {
        for row in 0..ROWS {
            let row = (destination + row * bytes) as *mut u8;
            // SAFETY: source and rows of the batch are `bytes` long each, in mappings of their own.
            unsafe { std::ptr::copy_nonoverlapping(from.next(), row, bytes) };
        }
    };
    let receive = || {
        // SAFETY: the part of the receiver's own memory is `bytes` long.
        unsafe { std::ptr::copy_nonoverlapping(body.as_ptr(), to.next(), bytes) };
        true
    };
    rates(bytes, *draws_per_put, sample, receive, None)
}

fn ours(sides: &mut Sides) -> [f64; 2] {
    let Sides { buffer, batch, bytes, draws_per_put, receiver: sleeper, .. } = sides;
    let mut receiver = Receiver::new(buffer);
    let sample = || {
        batch.clear();
        buffer.gather(batch, None).expect("samples come or are there");
    };
    rates(*bytes, *draws_per_put, sample, || receiver.receive(), Some(sleeper))
}

fn main() {
    let mut criterion = support::criterion();
    for (size, bytes) in [("40 kB", 40_000), ("400 kB", 400_000)] {
        for (kind, how) in
            [(Kind::Fifo, "flat out"), (Kind::Reservoir, "receiver at a quarter of first sights")]
        {
            let what = format!("receiver and sampler together, {}, {size}, {how}", kind.name());
            let (bar, figures) = (Bar::AtLeast(0.9), ["sampler", "receiver"]);
            Comparison { what: &what, unit: "samples/s", bar, figures, seconds: 1.5 }.run(
                &mut criterion,
                || Sides::new(kind, bytes),
                |sides| {
                    let rates = bound(sides);
                    if kind == Kind::Fifo { [rates[0].min(rates[1]); 2] } else { rates }
                },
                ours,
            );
        }
    }
    criterion.final_summary();
}
