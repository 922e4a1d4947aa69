//! Cost at scale: time per put and per draw with many slots against the same with a hundredth or tenth of them.
//!
//! A receiver and a sampler run together at a fixed ratio of puts to draws, so that the population stands still; each
//! times its own work and not its waits. Rows of 64 bytes show the index alone, which the bar is for; rows of a payload have its
//! copy in them, which costs more in larger memory with any program: plain copies are there to compare.

#![allow(clippy::expect_used, reason = "a bench that cannot go on has nothing to tidy up")]

mod support;

use criterion::Criterion;
use melissa_core::batch::Batch;
use melissa_core::buffer::{Buffer, Kind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::buffers::{self, Memory, Receiver};
use support::{Bar, Comparison};

const ROWS: usize = 10;

struct Side {
    buffer: Buffer,
    batch: Batch,
    slots: usize,
}

impl Side {
    /// A full buffer; of a reservoir about as many samples were seen as in the steady state.
    fn new(kind: Kind, slots: usize, bytes: usize) -> Self {
        let buffer = buffers::buffer(kind, slots, bytes, ROWS);
        buffers::fill(&buffer);
        let mut batch = buffers::batch(&buffer, ROWS);
        if buffer.config().kind == Kind::Reservoir {
            for _ in 0..slots * 14 / 10 / ROWS {
                batch.clear();
                buffer.gather(&mut batch, None).expect("a full reservoir");
            }
        }
        Self { buffer, batch, slots }
    }

    /// Nanoseconds per put and per draw, of that many draws.
    fn cost(&mut self, draws: usize) -> [f64; 2] {
        let Self { buffer, batch, slots } = self;
        let draws_per_put = if buffer.config().kind == Kind::Reservoir { 4 } else { 1 };
        let chunk = (draws.min(*slots) / 16 / ROWS * ROWS).clamp(ROWS, 40 * ROWS);
        let slack = 4 * chunk;
        let (drawn, put) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut receiver = Receiver::new(buffer);
                let burst = chunk / draws_per_put;
                let mut seconds = 0.0;
                while !stop.load(Ordering::Relaxed) {
                    let count = put.load(Ordering::Relaxed);
                    if drawn.load(Ordering::Relaxed) < (count + burst) * draws_per_put {
                        thread::yield_now();
                        continue;
                    }
                    let begin = buffers::now();
                    for _ in 0..burst {
                        assert!(receiver.receive(), "draws have made room");
                    }
                    seconds += buffers::now() - begin;
                    put.store(count + burst, Ordering::Relaxed);
                }
                seconds * 1e9 / put.load(Ordering::Relaxed) as f64
            });
            let mut seconds = 0.0;
            let mut count = 0;
            while count < draws {
                if count > put.load(Ordering::Relaxed) * draws_per_put + slack {
                    thread::yield_now();
                    continue;
                }
                let begin = buffers::now();
                for _ in 0..chunk / ROWS {
                    batch.clear();
                    buffer.gather(batch, None).expect("a population that is never empty");
                }
                seconds += buffers::now() - begin;
                count += chunk / ROWS * ROWS;
                drawn.store(count, Ordering::Relaxed);
            }
            // The last puts that these draws allow, so that the population is full again.
            while count >= (put.load(Ordering::Relaxed) + chunk / draws_per_put) * draws_per_put {
                thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            [receiver.join().expect("the receiver ended well"), seconds * 1e9 / count as f64]
        })
    }
}

fn compare(criterion: &mut Criterion, kind: Kind, (few, many): (usize, usize), bytes: usize, bar: Bar) {
    let size = match bytes {
        ..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    };
    let what = format!("cost at scale, {}, {many} against {few} slots of {size}", kind.name());
    let draws = (200_000_000 / bytes).clamp(100, 100_000) / ROWS * ROWS;
    Comparison { what: &what, unit: "ns", bar, figures: ["put", "draw"], seconds: 1.5 }.run(
        criterion,
        || [few, many].map(|slots| Side::new(kind, slots, bytes)),
        |[few, _]| few.cost(draws),
        |[_, many]| many.cost(draws),
    );
}

/// What the machine alone makes of the larger memory: the same copies at random places, without a buffer.
fn plain_copies(criterion: &mut Criterion, (few, many): (usize, usize), bytes: usize) {
    let what =
        format!("plain copies of {} kB at random places, {many} against {few}, no buffer", bytes / 1_000);
    let cost = |memory: &Memory, batch: &Memory| {
        let places = (memory.bytes() / bytes) as u64;
        let mut state = 1u64;
        // SplitMix64's increment and a multiplication: enough to leave no pattern that the processor could follow.
        let mut place = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            memory.part(((u128::from(mixed) * u128::from(places)) >> 64) as usize * bytes, bytes)
        };
        let draws = 200_000_000 / bytes;
        [false, true].map(|into_batch| {
            let begin = buffers::now();
            for draw in 0..draws {
                let (row, place) = (batch.part(draw % ROWS * bytes, bytes), place());
                let (from, to) = if into_batch { (place, row) } else { (row, place) };
                // SAFETY: two parts of `bytes` bytes of two memories.
                unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
            }
            (buffers::now() - begin) * 1e9 / draws as f64
        })
    };
    Comparison { what: &what, unit: "ns", bar: Bar::None, figures: ["put", "draw"], seconds: 1.5 }.run(
        criterion,
        || [few, many, ROWS].map(|places| Memory::new(places * bytes)),
        |[few, _, batch]| cost(few, batch),
        |[_, many, batch]| cost(many, batch),
    );
}

/// Time to make a buffer and bind it: the slab is mapped and its index made, and no page of the slab touched yet.
fn start_up(criterion: &mut Criterion, slots: usize, bytes: usize) {
    criterion.bench_function(&format!("start-up/{slots} slots of {bytes} B"), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut time = Duration::ZERO;
            for _ in 0..iterations {
                let begin = Instant::now();
                let buffer = buffers::buffer(Kind::Fifo, slots, bytes, ROWS);
                time += begin.elapsed();
                drop(buffer);
            }
            time
        });
    });
}

/// The first fill of a slab against a later one: the kernel gives and zeroes each page when it is touched first.
fn first_fill(criterion: &mut Criterion, bytes: usize) {
    let slots = (256 << 20) / bytes;
    let fill = |buffer: &Buffer| {
        let begin = buffers::now();
        buffers::fill(buffer);
        [(slots * bytes) as f64 / (buffers::now() - begin) / 1e9]
    };
    let what = format!("first fill of the slab, {slots} slots of {bytes} B, against a later one");
    Comparison { what: &what, unit: "GB/s", bar: Bar::None, figures: [""], seconds: 1.5 }.run(
        criterion,
        || Side::new(Kind::Fifo, slots, bytes),
        |Side { buffer, batch, .. }| {
            while buffer.population() > 0 {
                batch.clear();
                buffer.gather(batch, Some(Instant::now())).ok();
            }
            fill(buffer)
        },
        |_| fill(&buffers::buffer(Kind::Fifo, slots, bytes, ROWS)),
    );
}

fn main() {
    let mut criterion = support::criterion();
    for (slots, bytes) in [(1_000_000, 4_000), (100_000, 40_000), (2_500, 4_000_000)] {
        start_up(&mut criterion, slots, bytes);
        first_fill(&mut criterion, bytes);
    }
    plain_copies(&mut criterion, (10_000, 1_000_000), 4_000);
    for kind in [Kind::Reservoir, Kind::Fifo, Kind::Firo] {
        compare(&mut criterion, kind, (10_000, 1_000_000), 64, Bar::AtMost(1.5));
        compare(&mut criterion, kind, (10_000, 1_000_000), 4_000, Bar::None);
        compare(&mut criterion, kind, (10_000, 100_000), 40_000, Bar::None);
        compare(&mut criterion, kind, (250, 2_500), 4_000_000, Bar::None);
    }
    criterion.final_summary();
}
