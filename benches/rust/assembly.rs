//! Batch assembly: `gather` of random slots against the same bytes copied in sequence into the same destination.
//!
//! A receiver runs beside both sides at the same modest pace: beside ours it takes slots, fills and publishes them, beside
//! the bound it copies the same bytes into memory of its own.

#![allow(clippy::expect_used, reason = "a bench that cannot go on has nothing to tidy up")]

mod support;

use criterion::Criterion;
use melissa_core::batch::Batch;
use melissa_core::buffer::{Buffer, Kind};
use support::buffers::{self, Memory, Receiver, Walk};
use support::{Bar, Comparison};

/// Bytes of the slab, and of the bound's source: large against every cache.
const SLAB: usize = 1 << 30;
const ROWS: usize = 10;
/// Bytes a second that the receiver writes.
const RECEIVED: f64 = 200e6;
/// Bytes that one run copies.
const RUN: usize = 80 << 20;

struct Sides {
    buffer: Buffer,
    batch: Batch,
    source: Memory,
    apart: Memory,
}

impl Sides {
    fn new(bytes: usize) -> Self {
        let buffer = buffers::buffer(Kind::Reservoir, SLAB / bytes, bytes, ROWS);
        buffers::fill(&buffer);
        let mut batch = buffers::batch(&buffer, ROWS);
        // Most samples were seen, so that the receiver finds room.
        for _ in 0..SLAB / bytes / ROWS {
            gather(&buffer, &mut batch);
        }
        Self { buffer, batch, source: Memory::new(SLAB), apart: Memory::new(SLAB) }
    }
}

fn gather(buffer: &Buffer, batch: &mut Batch) {
    batch.clear();
    buffer.gather(batch, None).expect("a full reservoir");
}

/// GB per second of `batches` calls.
fn rate(bytes: usize, mut batch: impl FnMut()) -> [f64; 1] {
    let batches = (RUN / bytes / ROWS).max(1);
    let begin = buffers::now();
    for _ in 0..batches {
        batch();
    }
    [(batches * ROWS * bytes) as f64 / (buffers::now() - begin) / 1e9]
}

fn compare(criterion: &mut Criterion, what: &str, bytes: usize, bar: f64) {
    let per_second = RECEIVED / bytes as f64;
    Comparison { what, unit: "GB/s", bar: Bar::AtLeast(bar), figures: [""], seconds: 1.5 }.run(
        criterion,
        || Sides::new(bytes),
        |Sides { batch, source, apart, .. }| {
            let (mut from, mut to) = (Walk::new(source, bytes), Walk::new(apart, bytes));
            let body = vec![7u8; bytes];
            // SAFETY: the part of the receiver's own memory is `bytes` long.
            let receive = || unsafe { std::ptr::copy_nonoverlapping(body.as_ptr(), to.next(), bytes) };
            let destination = batch.field_ptr(0);
            buffers::beside(per_second, receive, || {
                rate(bytes, || {
                    for row in 0..ROWS {
                        // SAFETY: source and rows of the batch are `bytes` long each, in mappings of their own.
                        unsafe {
                            std::ptr::copy_nonoverlapping(from.next(), destination.add(row * bytes), bytes);
                        }
                    }
                })
            })
        },
        |Sides { buffer, batch, .. }| {
            let mut receiver = Receiver::new(buffer);
            let receive = || assert!(receiver.receive(), "samples that were seen make room");
            buffers::beside(per_second, receive, || rate(bytes, || gather(buffer, batch)))
        },
    );
}

fn main() {
    let mut criterion = support::criterion();
    compare(&mut criterion, "batch assembly, random slots, 4 kB, huge pages", 4_000, 0.85);
    compare(&mut criterion, "batch assembly, random slots, 40 kB", 40_000, 0.95);
    compare(&mut criterion, "batch assembly, random slots, 400 kB", 400_000, 0.95);
    compare(&mut criterion, "batch assembly, random slots, 4 MB", 4_000_000, 0.95);
    criterion.final_summary();
}
