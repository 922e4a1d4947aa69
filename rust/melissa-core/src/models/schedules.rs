//! Larger buffers under shuttle: many threads, schedules at random (uniform, and by PCT: priorities that change a few times).

use super::parts::{Receiver, assert_all_slots_are_free, buffer, config, draw, put};
use super::setting;
use crate::batch::{Batch, BatchLayout};
use crate::buffer::{Buffer, BufferConfig, Kind, Sample};
use crate::error::BufferError;
use crate::prefetch::Prefetcher;
use crate::sync::{Arc, Mutex, lock, thread};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};
use std::time::Instant;

/// Depth of PCT: a bug that needs so many turns of fate is found with a known probability.
const DEPTH: usize = 4;

/// Runs `model` under both schedulers, and says how often.
fn explore(name: &str, model: fn()) {
    let schedules = setting("MELISSA_SCHEDULES", 5000);
    let seed = setting("MELISSA_SEED", 1);
    let begin = Instant::now();
    let mut config = Config::new();
    config.stack_size = 1 << 17;
    // That all orderings are taken as the strongest is said in docs/verification.md: weak ones are loom's.
    config.silence_warnings = true;
    let random = RandomScheduler::new_from_seed(seed, schedules);
    Runner::new(random, config.clone()).run(model);
    let pct = PctScheduler::new_from_seed(seed, DEPTH, schedules);
    Runner::new(pct, config).run(model);
    println!("{name}: 2 x {schedules} schedules from seed {seed}, {:.1} s", begin.elapsed().as_secs_f64());
}

/// A configuration at random, as small as it can be, where most bugs are.
fn any_config(kind: Kind) -> BufferConfig {
    let mut rng = thread_rng();
    let capacity = rng.gen_range(1..4);
    let watermark = match kind {
        Kind::Fifo => 0,
        Kind::Firo => rng.gen_range(0..capacity),
        Kind::Reservoir | Kind::BatchReservoir => rng.gen_range(0..=capacity),
    };
    BufferConfig {
        capacity,
        watermark,
        batch_size: rng.gen_range(1..=capacity),
        seed: rng.gen_range(0..1000),
        assembly_slots: rng.gen_range(1..3),
        ..config(kind, capacity)
    }
}

/// Every sample was delivered, and more than once only where samples stay.
fn check_deliveries(kind: Kind, samples: u64, drawn: &[u64]) {
    for number in 0..samples {
        let deliveries = drawn.iter().filter(|&&other| other == number).count();
        assert!(deliveries >= 1, "sample {number} was never delivered: {drawn:?}");
        assert!(deliveries == 1 || kind.keeps_samples(), "sample {number} came again: {drawn:?}");
    }
}

fn draw_one_by_one(buffer: &Buffer, drawn: &Mutex<Vec<u64>>) {
    while let Some(number) = draw(buffer) {
        lock(drawn).push(number);
        thread::yield_now();
    }
}

/// Batches of up to three: several pins are held at once while one sample after another is copied.
fn gather_batches(buffer: &Buffer, drawn: &Mutex<Vec<u64>>) {
    let rows = thread_rng().gen_range(1..4);
    let layout = BatchLayout::new(buffer.schema().unwrap(), rows);
    let mut batch = Batch::new(&Arc::default(), layout).unwrap();
    loop {
        batch.clear();
        match buffer.gather(&mut batch, None) {
            Ok(()) => {}
            Err(BufferError::EndOfData) => break,
            Err(error) => panic!("{error}"),
        }
        let size = buffer.schema().unwrap().field_bytes(0);
        for (row, key) in batch.keys().iter().enumerate() {
            // SAFETY: the row is one of those that were filled.
            let bytes = unsafe { std::slice::from_raw_parts(batch.field_ptr(0).add(row * size), size) };
            assert!(bytes.iter().all(|&byte| byte == key.time_step as u8 + 1), "a row is whole");
        }
        lock(drawn).extend(batch.keys().iter().map(|key| key.time_step));
        thread::yield_now();
    }
}

/// Lends samples and keeps up to three of them for a while: they do not change.
fn hold_views(buffer: &Buffer, drawn: &Mutex<Vec<u64>>) {
    let look = |sample: &Sample| {
        let number = sample.key().time_step;
        assert!(sample.field_bytes(0).iter().all(|&byte| byte == number as u8 + 1), "a view is whole");
        assert_eq!(sample.parameters(), [number as f64]);
        number
    };
    let mut held: Vec<(u64, Sample)> = Vec::new();
    loop {
        match buffer.get(None) {
            Ok(sample) => {
                let number = look(&sample);
                lock(drawn).push(number);
                held.push((number, sample));
            }
            Err(BufferError::EndOfData) => break,
            Err(error) => panic!("{error}"),
        }
        thread::yield_now();
        assert!(held.iter().all(|(number, sample)| look(sample) == *number), "a view never changes");
        if held.len() == 3 {
            held.swap_remove(thread_rng().gen_range(0..3));
        }
    }
}

/// The receiving thread, a writer that waits, two samplers and a user who keeps views, up to the last sample.
fn pass(kind: Kind) {
    let buffer = buffer(any_config(kind));
    let (received, put_by_user) = (thread_rng().gen_range(1..6), thread_rng().gen_range(0..4));
    let drawn = Arc::new(Mutex::new(Vec::new()));
    let receiver = Receiver::new(&buffer);
    let samplers: Vec<_> = [draw_one_by_one, gather_batches, hold_views]
        .into_iter()
        .map(|sample| {
            let (buffer, drawn) = (Arc::clone(&buffer), Arc::clone(&drawn));
            thread::spawn(move || sample(&buffer, &drawn))
        })
        .collect();
    let receiving = thread::spawn(move || (0..received).for_each(|number| receiver.receive(number)));
    let putting = Arc::clone(&buffer);
    let writer =
        thread::spawn(move || (received..received + put_by_user).for_each(|number| put(&putting, number)));
    let pausing = Arc::clone(&buffer);
    let pauser = thread::spawn(move || {
        pausing.pause();
        thread::yield_now();
        pausing.resume();
    });
    pauser.join().unwrap();
    // A watermark above the number of samples would never be reached.
    buffer.lift_watermark();
    receiving.join().unwrap();
    writer.join().unwrap();
    buffer.close();
    for sampler in samplers {
        sampler.join().unwrap();
    }
    check_deliveries(kind, received + put_by_user, &lock(&drawn));
    assert_eq!(buffer.population(), 0);
    assert_all_slots_are_free(&buffer);
}

#[test]
fn a_fifo_passes_every_sample_once() {
    explore("fifo", || pass(Kind::Fifo));
}

#[test]
fn a_firo_passes_every_sample_once() {
    explore("firo", || pass(Kind::Firo));
}

#[test]
fn a_reservoir_loses_no_sample() {
    explore("reservoir", || pass(Kind::Reservoir));
}

#[test]
fn a_batch_reservoir_loses_no_sample() {
    explore("batch reservoir", || pass(Kind::BatchReservoir));
}

/// Batches through the prefetching thread and the consumer that gathers for itself, whichever is quicker.
fn prefetched(kind: Kind) {
    let buffer = buffer(any_config(kind));
    let samples = thread_rng().gen_range(1..8);
    let receiver = Receiver::new(&buffer);
    let batch = buffer.config().batch_size;
    let prefetcher =
        Prefetcher::start(Arc::clone(&buffer), batch, thread_rng().gen_range(1..3), false).unwrap();
    let receiving = {
        let buffer = Arc::clone(&buffer);
        thread::spawn(move || {
            (0..samples).for_each(|number| receiver.receive(number));
            buffer.close();
        })
    };
    buffer.lift_watermark();
    let mut drawn = Vec::new();
    loop {
        match prefetcher.next(None) {
            Ok(batch) => drawn.extend(batch.keys().iter().map(|key| key.time_step)),
            Err(BufferError::EndOfData) => break,
            Err(error) => panic!("{error}"),
        }
        thread::yield_now();
    }
    receiving.join().unwrap();
    prefetcher.stop();
    drop(prefetcher);
    check_deliveries(kind, samples, &drawn);
    assert_all_slots_are_free(&buffer);
}

#[test]
fn batches_of_a_fifo_are_gathered_ahead_without_a_loss() {
    explore("prefetched fifo", || prefetched(Kind::Fifo));
}

#[test]
fn batches_of_a_reservoir_are_gathered_ahead_without_a_loss() {
    explore("prefetched reservoir", || prefetched(Kind::Reservoir));
}
