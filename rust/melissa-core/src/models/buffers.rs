//! Whole buffers under loom: one receiver, two samplers, the end of reception and the drain.

use super::parts::{Receiver, assert_all_slots_are_free, buffer, config, draw, put, try_publish};
use super::{EVERY, explore};
use crate::buffer::{Buffer, Kind};
use crate::sync::{Arc, Mutex, lock, thread};

fn spawn_draw(buffer: &Arc<Buffer>) -> thread::JoinHandle<Option<u64>> {
    let buffer = Arc::clone(buffer);
    thread::spawn(move || draw(&buffer))
}

/// Two slots in turn: the third is kept back, so that slots are used again soon.
fn samples_pass(name: &str, kind: Kind, preemptions: usize, samples: u64, draws: [usize; 2]) {
    explore(name, preemptions, move || {
        let buffer = buffer(config(kind, 1));
        let spare = buffer.take_slot().unwrap();
        let receiver = Receiver::new(&buffer);
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let samplers: Vec<_> = draws
            .into_iter()
            .map(|draws| {
                let (buffer, drawn) = (Arc::clone(&buffer), Arc::clone(&drawn));
                thread::spawn(move || {
                    for _ in 0..draws {
                        let Some(number) = draw(&buffer) else { return };
                        lock(&drawn).push(number);
                    }
                })
            })
            .collect();
        for number in 0..samples {
            receiver.receive(number);
        }
        buffer.close();
        for sampler in samplers {
            sampler.join().unwrap();
        }
        let before_drain = lock(&drawn).len();
        let mut drawn = std::mem::take(&mut *lock(&drawn));
        drawn.extend(std::iter::from_fn(|| draw(&buffer)));
        assert_eq!(buffer.population(), 0, "the drain leaves nothing");
        assert!(drawn.len() - before_drain <= 1, "the drain gives the one sample of the population once");
        for number in 0..samples {
            let deliveries = drawn.iter().filter(|&&other| other == number).count();
            assert!(deliveries >= 1, "sample {number} was never delivered: {drawn:?}");
            assert!(deliveries == 1 || kind.keeps_samples(), "sample {number} came again: {drawn:?}");
        }
        drop(spare);
        assert_all_slots_are_free(&buffer);
    });
}

/// The sample is seen, evicted, and its slot written anew, all beside the one reader of it.
#[test]
fn a_slot_is_not_written_before_its_reader_is_done() {
    explore("reader", EVERY, || {
        let buffer = buffer(config(Kind::Reservoir, 1));
        let spare = buffer.take_slot().unwrap();
        let receiver = Receiver::new(&buffer);
        receiver.receive(0);
        let sampler = spawn_draw(&buffer);
        receiver.receive(1);
        let further = receiver.assemble(2);
        assert!(sampler.join().unwrap().is_some());
        drop((spare, further));
        buffer.close();
        assert_eq!(draw(&buffer), Some(1));
        assert_eq!(draw(&buffer), None);
        assert_all_slots_are_free(&buffer);
    });
}

/// One of two was seen: that one goes, whoever looks at the positions meanwhile.
#[test]
fn the_unseen_one_of_two_stays() {
    explore("victim", 4, || {
        let buffer = buffer(config(Kind::Reservoir, 2));
        let receiver = Receiver::new(&buffer);
        receiver.receive(0);
        receiver.receive(1);
        let sampler = spawn_draw(&buffer);
        receiver.receive(2);
        let mut drawn = vec![sampler.join().unwrap().unwrap()];
        buffer.close();
        drawn.extend(std::iter::from_fn(|| draw(&buffer)));
        for number in 0..3 {
            assert!(drawn.contains(&number), "sample {number} was never delivered: {drawn:?}");
        }
    });
}

/// Reception ends beside a publication: what was taken is delivered, what was refused is not.
#[test]
fn what_is_published_beside_the_end_of_reception_is_delivered() {
    for kind in [Kind::Fifo, Kind::Reservoir] {
        explore("close", 3, move || {
            let buffer = buffer(config(kind, 2));
            let receiving = Arc::clone(&buffer);
            let receiver = thread::spawn(move || try_publish(&receiving, 0));
            let sampler = spawn_draw(&buffer);
            buffer.close();
            let mut drawn: Vec<u64> = sampler.join().unwrap().into_iter().collect();
            let published = receiver.join().unwrap();
            drawn.extend(std::iter::from_fn(|| draw(&buffer)));
            assert_eq!(drawn.contains(&0), published, "{drawn:?}");
            assert!(drawn.len() <= 1 || kind.keeps_samples(), "{drawn:?}");
            assert_all_slots_are_free(&buffer);
        });
    }
}

#[test]
fn two_samplers_share_the_drain_without_a_repeat() {
    for kind in Kind::ALL {
        explore("drain", 3, move || {
            let buffer = buffer(config(kind, 3));
            for number in 0..3 {
                assert!(try_publish(&buffer, number));
            }
            buffer.close();
            let drain = |buffer: &Arc<Buffer>| std::iter::from_fn(|| draw(buffer)).collect::<Vec<_>>();
            let other = Arc::clone(&buffer);
            let sampler = thread::spawn(move || drain(&other));
            let mut drawn = drain(&buffer);
            drawn.extend(sampler.join().unwrap());
            drawn.sort_unstable();
            assert_eq!(drawn, [0, 1, 2], "each once");
            assert_eq!(buffer.population(), 0);
            assert_all_slots_are_free(&buffer);
        });
    }
}

/// Two writers that may wait, as a `put` from Python does, beside one sampler.
#[test]
fn writers_that_wait_for_room_all_get_it() {
    for kind in [Kind::Fifo, Kind::Reservoir] {
        explore("put", 2, move || {
            let buffer = buffer(config(kind, 1));
            let writers: Vec<_> = (0..2)
                .map(|number| {
                    let buffer = Arc::clone(&buffer);
                    thread::spawn(move || put(&buffer, number))
                })
                .collect();
            let mut drawn = vec![draw(&buffer).unwrap()];
            for writer in writers {
                writer.join().unwrap();
            }
            buffer.close();
            drawn.extend(std::iter::from_fn(|| draw(&buffer)));
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn, [0, 1]);
            assert_all_slots_are_free(&buffer);
        });
    }
}

#[test]
fn a_reservoir_evicts_what_was_seen_and_drains_each_once() {
    samples_pass("reservoir", Kind::Reservoir, 1, 2, [1, 2]);
}

#[test]
fn a_fifo_hands_each_sample_to_one_sampler() {
    samples_pass("fifo", Kind::Fifo, 2, 2, [1, 1]);
}
