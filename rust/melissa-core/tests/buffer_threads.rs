//! Training buffers with real threads: no torn payload, nobody waits for ever, draws are uniform.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use melissa_core::batch::{Batch, BatchLayout, BatchPool};
use melissa_core::buffer::{Buffer, BufferConfig, Kind, SampleKey};
use melissa_core::error::BufferError;
use melissa_core::prefetch::Prefetcher;
use melissa_core::schema::{Dtype, Field, Schema};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ELEMENTS: usize = 257;

fn config(kind: Kind, capacity: usize, watermark: usize, batch_size: usize) -> BufferConfig {
    BufferConfig {
        kind,
        capacity,
        watermark,
        pseudo_epochs: 1,
        batch_size,
        seed: 11,
        assembly_slots: 2,
        lent_slots: Some(3),
    }
}

fn buffer(config: BufferConfig) -> Arc<Buffer> {
    let buffer = Buffer::new(config).unwrap();
    let fields = vec![Field { name: "u".into(), dtype: Dtype::F64, size: ELEMENTS }];
    buffer.bind(Arc::new(Schema::new(fields, 1).unwrap())).unwrap();
    Arc::new(buffer)
}

fn key(number: u64) -> SampleKey {
    SampleKey { simulation: 1, draw: 0, time_step: number }
}

fn put(buffer: &Buffer, number: u64, deadline: Option<Instant>) -> Result<(), BufferError> {
    let bytes: Vec<u8> = std::iter::repeat_n((number as f64).to_ne_bytes(), ELEMENTS).flatten().collect();
    buffer.put(key(number), &[&bytes], &[number as f64], deadline)
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

/// Every row of a batch is whole and belongs to its key.
fn check(batch: &Batch) -> Vec<u64> {
    let rows = batch.keys().len();
    // SAFETY: a batch of this layout holds so many rows.
    let (inputs, field) = unsafe {
        (
            std::slice::from_raw_parts(batch.inputs_ptr().cast::<f64>(), rows * 2),
            std::slice::from_raw_parts(batch.field_ptr(0).cast::<f64>(), rows * ELEMENTS),
        )
    };
    for (row, key) in batch.keys().iter().enumerate() {
        let number = key.time_step as f64;
        assert_eq!(inputs[2 * row..2 * row + 2], [number, number]);
        assert!(field[row * ELEMENTS..(row + 1) * ELEMENTS].iter().all(|&x| x == number), "a torn payload");
    }
    batch.keys().iter().map(|key| key.time_step).collect()
}

#[test]
fn payloads_are_whole_and_every_sample_is_delivered_with_two_putters_and_two_samplers() {
    for kind in Kind::ALL {
        let total = 6000u64;
        let buffer = buffer(config(kind, 40, 10, 4));
        let delivered: Arc<Vec<AtomicU64>> = Arc::new((0..total).map(|_| AtomicU64::new(0)).collect());
        let putters: Vec<_> = (0..2)
            .map(|half| {
                let buffer = Arc::clone(&buffer);
                thread::spawn(move || {
                    for number in (half..total).step_by(2) {
                        put(&buffer, number, soon()).unwrap();
                    }
                })
            })
            .collect();
        let samplers: Vec<_> = (0..2)
            .map(|index| {
                let (buffer, delivered) = (Arc::clone(&buffer), Arc::clone(&delivered));
                thread::spawn(move || {
                    let pool = Arc::<BatchPool>::default();
                    loop {
                        let numbers = if index == 0 {
                            let layout = BatchLayout::new(buffer.schema().unwrap(), 4);
                            let mut batch = Batch::new(&pool, layout).unwrap();
                            match buffer.gather(&mut batch, soon()) {
                                Ok(()) => check(&batch),
                                Err(BufferError::EndOfData) => return,
                                Err(other) => panic!("{kind:?}: {other}"),
                            }
                        } else {
                            match buffer.get(soon()) {
                                Ok(sample) => {
                                    thread::yield_now();
                                    let number = sample.key().time_step;
                                    let expected = (number as f64).to_ne_bytes();
                                    assert!(sample.field_bytes(0).chunks_exact(8).all(|x| x == expected));
                                    vec![number]
                                }
                                Err(BufferError::EndOfData) => return,
                                Err(other) => panic!("{kind:?}: {other}"),
                            }
                        };
                        for number in numbers {
                            delivered[number as usize].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        putters.into_iter().for_each(|thread| thread.join().unwrap());
        buffer.close();
        samplers.into_iter().for_each(|thread| thread.join().unwrap());
        let once = matches!(kind, Kind::Fifo | Kind::Firo);
        for times in delivered.iter().map(|times| times.load(Ordering::Relaxed)) {
            assert!(if once { times == 1 } else { times >= 1 }, "{kind:?}: delivered {times} times");
        }
    }
}

fn chi_square(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
}

#[test]
fn a_reservoir_draws_uniformly_over_its_population_pinned_samples_included() {
    for kind in [Kind::Reservoir, Kind::BatchReservoir] {
        let buffer = buffer(config(kind, 50, 1, 5));
        (0..50).for_each(|number| put(&buffer, number, None).unwrap());
        let held: Vec<_> = (0..3).map(|index| buffer.peek(index).unwrap()).collect();
        let mut counts = [0u64; 50];
        let pool = Arc::<BatchPool>::default();
        let mut batch = Batch::new(&pool, BatchLayout::new(buffer.schema().unwrap(), 5)).unwrap();
        for _ in 0..20_000 {
            batch.clear();
            buffer.gather(&mut batch, None).unwrap();
            batch.keys().iter().for_each(|key| counts[key.time_step as usize] += 1);
        }
        // 49 degrees of freedom; batches without repeats spread less than independent draws.
        let chi2 = chi_square(&counts);
        assert!(chi2 < 113.0, "{kind:?}: chi-square {chi2}: {counts:?}");
        drop(held);
    }
}

#[test]
fn a_position_that_is_replaced_beside_the_sampler_is_drawn_as_often_as_any_other() {
    let buffer = buffer(config(Kind::Reservoir, 16, 1, 4));
    (0..16).for_each(|number| put(&buffer, number, None).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let putter = {
        let (buffer, stop) = (Arc::clone(&buffer), Arc::clone(&stop));
        thread::spawn(move || {
            let mut number = 16;
            while !stop.load(Ordering::Relaxed) {
                if put(&buffer, number, Some(Instant::now() + Duration::from_millis(5))).is_ok() {
                    number += 1;
                }
            }
            number
        })
    };
    let (draws, start) = (60_000u64, Instant::now());
    let mut waits = 0;
    for _ in 0..draws {
        match buffer.get(Some(Instant::now())) {
            Ok(_) => {}
            Err(BufferError::Timeout) => waits += 1,
            Err(other) => panic!("{other}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    let published = putter.join().unwrap();
    assert_eq!(waits, 0, "a full reservoir never makes its sampler wait");
    assert!(published > 16, "nothing was replaced in {:?}", start.elapsed());
    assert_eq!(buffer.metrics().drawn, draws);
}

#[test]
fn mean_deliveries_are_consumption_over_production() {
    let buffer = buffer(config(Kind::Reservoir, 100, 20, 5));
    let (mut next, mut drawn) = (0, 0u64);
    let mut deliveries = vec![];
    while next < 5000 {
        // Two draws for each publish.
        if put(&buffer, next, Some(Instant::now())).is_ok() {
            next += 1;
            deliveries.push(0u64);
        }
        for _ in 0..2 {
            if let Ok(sample) = buffer.get(Some(Instant::now())) {
                deliveries[sample.key().time_step as usize] += 1;
                drawn += 1;
            }
        }
    }
    let steady = &deliveries[500..4500];
    let mean = steady.iter().sum::<u64>() as f64 / steady.len() as f64;
    assert!((mean - 2.0).abs() < 0.1, "{mean} deliveries per sample, {drawn} draws for {next} samples");
}

#[test]
fn the_same_seed_and_interleaving_give_the_same_draws() {
    for kind in Kind::ALL {
        let run = |seed| {
            let buffer = buffer(BufferConfig { seed, ..config(kind, 12, 3, 2) });
            let mut numbers = vec![];
            for number in 0..60 {
                let _ = put(&buffer, number, Some(Instant::now()));
                for _ in 0..number % 3 {
                    if let Ok(sample) = buffer.get(Some(Instant::now())) {
                        numbers.push(sample.key().time_step);
                    }
                }
            }
            buffer.close();
            while let Ok(sample) = buffer.get(None) {
                numbers.push(sample.key().time_step);
            }
            numbers
        };
        assert_eq!(run(1), run(1));
        assert_eq!(kind == Kind::Fifo, run(1) == run(2), "{kind:?}");
    }
}

#[test]
fn whoever_waits_is_woken_by_data_by_the_end_and_by_a_failure() {
    type Event = fn(&Buffer);
    type Expected = fn(&Result<u64, BufferError>) -> bool;
    let events: [(Event, Expected); 3] = [
        (|buffer| put(buffer, 5, None).unwrap(), |result| matches!(result, Ok(5))),
        (|buffer| buffer.close(), |result| matches!(result, Err(BufferError::EndOfData))),
        (
            |buffer| buffer.fail("the disk is gone".into()),
            |result| matches!(result, Err(BufferError::Failed(text)) if text == "the disk is gone"),
        ),
    ];
    for (event, expected) in events {
        let buffer = buffer(config(Kind::Fifo, 4, 0, 1));
        let waiter = {
            let buffer = Arc::clone(&buffer);
            thread::spawn(move || {
                let result = buffer.get(None).map(|sample| sample.key().time_step);
                (result, Instant::now())
            })
        };
        thread::sleep(Duration::from_millis(50));
        let before = Instant::now();
        event(&buffer);
        let (result, woken) = waiter.join().unwrap();
        assert!(expected(&result), "{result:?}");
        assert!(woken - before < Duration::from_millis(200));
    }
}

#[test]
fn a_put_waits_for_room_and_is_woken_by_a_get_and_by_the_end() {
    for close in [false, true] {
        let buffer = buffer(config(Kind::Fifo, 1, 0, 1));
        put(&buffer, 0, None).unwrap();
        let putter = {
            let buffer = Arc::clone(&buffer);
            thread::spawn(move || put(&buffer, 1, None))
        };
        thread::sleep(Duration::from_millis(50));
        if close {
            buffer.close();
            assert!(matches!(putter.join().unwrap(), Err(BufferError::Closed)));
        } else {
            assert_eq!(buffer.get(None).unwrap().key().time_step, 0);
            putter.join().unwrap().unwrap();
            assert_eq!(buffer.get(None).unwrap().key().time_step, 1);
        }
    }
}

#[test]
fn hoarded_views_become_copies_and_reception_goes_on() {
    let buffer = buffer(config(Kind::Fifo, 4, 0, 1));
    let mut hoard = vec![];
    for number in 0..50 {
        put(&buffer, number, soon()).unwrap();
        hoard.push(buffer.get(soon()).unwrap());
    }
    assert_eq!(hoard.iter().filter(|sample| !sample.is_copy()).count(), 3);
    for (number, sample) in hoard.iter().enumerate() {
        assert!(sample.field_bytes(0).chunks_exact(8).all(|x| x == (number as f64).to_ne_bytes()));
    }
}

#[test]
fn a_prefetcher_delivers_everything_in_order_and_ends_short() {
    let buffer = buffer(config(Kind::Fifo, 8, 0, 4));
    let prefetcher = Prefetcher::start(Arc::clone(&buffer), 4, 2, false).unwrap();
    let putter = {
        let buffer = Arc::clone(&buffer);
        thread::spawn(move || {
            (0..103).for_each(|number| put(&buffer, number, soon()).unwrap());
            buffer.close();
        })
    };
    let mut numbers = vec![];
    let mut kept = vec![];
    loop {
        match prefetcher.next(soon()) {
            Ok(batch) => {
                numbers.extend(check(&batch));
                // Batches that are held keep their memory to themselves.
                kept.push(batch);
            }
            Err(BufferError::EndOfData) => break,
            Err(other) => panic!("{other}"),
        }
    }
    putter.join().unwrap();
    assert_eq!(numbers, (0..103).collect::<Vec<_>>());
    assert_eq!(kept.iter().flat_map(check).collect::<Vec<_>>(), numbers);
    assert_eq!(kept.last().unwrap().keys().len(), 3);
    assert!(matches!(prefetcher.next(None), Err(BufferError::EndOfData)), "the end is told again");
}

#[test]
fn a_prefetcher_stops_while_it_waits_for_data() {
    let buffer = buffer(config(Kind::Reservoir, 8, 8, 4));
    let prefetcher = Prefetcher::start(buffer, 4, 1, false).unwrap();
    let start = Instant::now();
    prefetcher.stop();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(matches!(prefetcher.next(soon()), Err(BufferError::Closed)));
}

#[test]
fn configurations_that_cannot_work_are_refused_with_their_figures() {
    let refused = |config| Buffer::new(config).unwrap_err().to_string();
    assert!(refused(config(Kind::Firo, 10, 10, 1)).contains("10 and 10"));
    assert!(refused(config(Kind::Reservoir, 10, 11, 1)).contains("11 and 10"));
    assert!(refused(config(Kind::BatchReservoir, 4, 0, 5)).contains("5 and 4"));
    assert!(
        refused(BufferConfig { pseudo_epochs: 2, ..config(Kind::Fifo, 4, 0, 1) }).contains("pseudo_epochs")
    );
    assert!(refused(config(Kind::Fifo, 0, 0, 1)).contains("capacity"));
}

#[test]
fn a_slab_that_does_not_fit_is_refused_with_both_figures() {
    let buffer = Buffer::new(config(Kind::Fifo, 1 << 20, 0, 1)).unwrap();
    let fields = vec![Field { name: "u".into(), dtype: Dtype::F64, size: 1 << 30 }];
    let error = buffer.bind(Arc::new(Schema::new(fields, 0).unwrap())).unwrap_err();
    assert!(matches!(error, BufferError::Memory { .. }), "{error}");
    assert!(
        error.to_string().contains("MiB are available") || error.to_string().contains("available"),
        "{error}"
    );
}

#[test]
fn consumers_with_short_and_with_long_steps_share_a_prefetcher() {
    let buffer = buffer(config(Kind::Fifo, 8, 0, 4));
    let prefetcher = Arc::new(Prefetcher::start(Arc::clone(&buffer), 4, 2, false).unwrap());
    let consumers: Vec<_> = [0u64, 200]
        .map(|step| {
            let prefetcher = Arc::clone(&prefetcher);
            thread::spawn(move || {
                let mut numbers = vec![];
                loop {
                    match prefetcher.next(soon()) {
                        Ok(batch) => numbers.extend(check(&batch)),
                        Err(BufferError::EndOfData) => return numbers,
                        Err(other) => panic!("{other}"),
                    }
                    // Ten steps of one kind, then ten of the other: who gathers changes again and again.
                    if numbers.len() / 40 % 2 == 0 {
                        thread::sleep(Duration::from_micros(step));
                    }
                }
            })
        })
        .into();
    (0..8000).for_each(|number| put(&buffer, number, soon()).unwrap());
    buffer.close();
    let mut numbers: Vec<_> = consumers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..8000).collect::<Vec<_>>());
}
