//! What slab and policies cost by themselves, in one thread: criterion's own figures; there is no bound to hold them to.

#![allow(clippy::expect_used, reason = "a bench that cannot go on has nothing to tidy up")]

mod support;

use melissa_core::buffer::{Kind, LentBatch};
use std::hint::black_box;
use support::buffers::{self, PARAMETERS, Receiver};

const SLOTS: usize = 10_000;
const BYTES: usize = 64;

fn main() {
    let mut criterion = support::criterion();
    let mut group = criterion.benchmark_group("slab");
    let buffer = buffers::buffer(Kind::Fifo, SLOTS, BYTES, 10);
    group.bench_function("take a slot and give it back", |bencher| {
        bencher.iter(|| drop(black_box(buffer.take_slot().expect("a free slot"))));
    });
    group.finish();
    for kind in Kind::ALL {
        let mut group = criterion.benchmark_group(kind.name());
        let buffer = buffers::buffer(kind, SLOTS, BYTES, 10);
        let mut receiver = Receiver::new(&buffer);
        for _ in 0..SLOTS / 2 {
            assert!(receiver.receive(), "an empty buffer has room");
        }
        // Whoever keeps samples is full, and all of them were seen: each put evicts one.
        let keeps = matches!(kind, Kind::Reservoir | Kind::BatchReservoir);
        if keeps {
            buffers::fill(&buffer);
        }
        let slot = || buffer.take_slot().expect("a free slot");
        let publish = |slot| buffer.publish(slot, buffers::key(0), &PARAMETERS).expect("there is room");
        group.bench_function("get and put: take a slot, publish, draw, lend, unpin", |bencher| {
            bencher.iter(|| {
                drop(black_box(buffer.get(None).expect("samples are there")));
                if !keeps {
                    publish(slot());
                }
            });
        });
        group.bench_function("batch of 10: draw, lend, unpin, and put what it took out", |bencher| {
            bencher.iter(|| {
                let mut batch = LentBatch::default();
                buffer.get_batch(&mut batch, 10, None).expect("samples are there");
                drop(black_box(batch));
                if !keeps {
                    (0..10).for_each(|_| publish(slot()));
                }
            });
        });
        let mut batch = buffers::batch(&buffer, 10);
        group.bench_function("batch of 10: draw, gather, and put what it took out", |bencher| {
            bencher.iter(|| {
                batch.clear();
                buffer.gather(&mut batch, None).expect("samples are there");
                if !keeps {
                    (0..10).for_each(|_| publish(slot()));
                }
            });
        });
        if keeps {
            group.bench_function(
                "evict: take a slot, publish, and draws until one is seen for the first time",
                |bencher| {
                    bencher.iter(|| {
                        if let Err(slot) = buffer.publish(slot(), buffers::key(0), &PARAMETERS) {
                            drop(slot);
                            drop(black_box(buffer.get(None).expect("samples are there")));
                        }
                    });
                },
            );
        }
        group.finish();
    }
    criterion.final_summary();
}
