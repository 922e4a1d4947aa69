//! The pieces of the protocols, each alone with all its callers: the word of a slot, the lists of slots, and those who wait.

use super::parts::schema;
use super::{EVERY, explore};
use crate::bound::Room;
use crate::buffer::{SampleKey, SlotCounts};
use crate::session::bell::Bell;
use crate::slab::Slab;
use crate::slot::Entry;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, Waiters, lock, thread};

fn slab(slots: usize) -> Slab {
    Slab::new(schema(), SlotCounts { capacity: slots, assembly: 0, lent: 0 }).unwrap()
}

const fn key(number: u64) -> SampleKey {
    SampleKey { simulation: 0, draw: 0, time_step: number }
}

/// Two readers and one who takes the sample out: whoever lets go last frees the slot, once, and may write it anew.
#[test]
fn a_slot_is_freed_once_and_after_its_last_reader() {
    explore("slot", 3, || {
        let slab = Arc::new(slab(1));
        let word = slab.word(0);
        word.claim();
        // SAFETY: the slot is claimed, by this thread alone.
        unsafe { slab.set_key(0, key(1)) };
        let generation = word.publish();
        let freed = Arc::new(AtomicUsize::new(0));
        let rewrite = |slab: &Slab, freed: &AtomicUsize| {
            assert_eq!(freed.fetch_add(1, Ordering::Relaxed), 0, "freed once");
            slab.word(0).claim();
            // SAFETY: as above.
            unsafe { slab.set_key(0, key(2)) };
            // SAFETY: as above.
            unsafe { slab.slot_bytes_mut(0)[0] = 2 };
            slab.word(0).publish();
        };
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (slab, freed) = (Arc::clone(&slab), Arc::clone(&freed));
                thread::spawn(move || {
                    let release = match slab.word(0).pin(generation) {
                        Ok(()) => {
                            // SAFETY: the slot is pinned.
                            assert_eq!(unsafe { slab.key(0) }, key(1));
                            // SAFETY: as above.
                            assert_eq!(unsafe { slab.slot_bytes(0)[0] }, 0);
                            slab.word(0).unpin()
                        }
                        Err(release) => release,
                    };
                    if release == crate::slot::Release::Freed {
                        rewrite(&slab, &freed);
                    }
                })
            })
            .collect();
        if word.retire() == crate::slot::Release::Freed {
            rewrite(&slab, &freed);
        }
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(freed.load(Ordering::Relaxed), 1, "freed in the end");
        assert_eq!(word.pin(generation + 1), Ok(()), "and published anew");
    });
}

#[test]
fn a_list_gives_each_slot_once_to_who_takes_it() {
    explore("list", EVERY, || {
        let slab = Arc::new(slab(4));
        let pushers: Vec<_> = (0..2)
            .map(|pusher| {
                let slab = Arc::clone(&slab);
                thread::spawn(move || {
                    for slot in [2 * pusher, 2 * pusher + 1] {
                        // SAFETY: nobody else has this slot until it is pushed.
                        unsafe { slab.set_key(slot, key(u64::from(slot))) };
                        slab.push_free(slot);
                    }
                })
            })
            .collect();
        let mut taken = Vec::new();
        slab.take_free(&mut taken);
        for &slot in &taken {
            // SAFETY: whoever takes a slot from the list has it alone.
            assert_eq!(unsafe { slab.key(slot) }, key(u64::from(slot)));
        }
        for pusher in pushers {
            pusher.join().unwrap();
        }
        slab.take_free(&mut taken);
        for pair in [[0, 1], [2, 3]] {
            let place = |slot| taken.iter().position(|&other| other == slot).unwrap();
            assert!(place(pair[0]) < place(pair[1]), "one thread's slots come in its order");
        }
        assert_eq!(taken.len(), 4, "each comes once");
    });
}

#[test]
fn a_waiter_hears_of_every_change() {
    explore("waiters", 3, || {
        let shared = Arc::new((AtomicUsize::new(0), Waiters::default()));
        let waiters: Vec<_> = (1..3)
            .map(|wanted| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let ready = || (shared.0.load(Ordering::Relaxed) >= wanted).then_some(());
                    shared.1.wait_until(None, ready).unwrap();
                })
            })
            .collect();
        for _ in 0..2 {
            shared.0.fetch_add(1, Ordering::Relaxed);
            shared.1.notify();
        }
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// A draw makes room, and a put makes data: each wakes the other from within its own condition.
#[test]
fn two_who_wake_each_other_from_their_conditions_both_get_on() {
    explore("crossed waiters", 4, || {
        let shared = Arc::new((Mutex::new(0), Waiters::default(), Waiters::default()));
        let other = Arc::clone(&shared);
        let sampler = thread::spawn(move || {
            let (count, data, room) = &*other;
            let take = || {
                let taken = {
                    let mut count = lock(count);
                    let taken = *count > 0;
                    *count -= usize::from(taken);
                    taken
                };
                if taken {
                    room.notify();
                }
                taken.then_some(())
            };
            for _ in 0..2 {
                data.wait_until(None, take).unwrap();
            }
        });
        let (count, data, room) = &*shared;
        let put = || {
            let put = {
                let mut count = lock(count);
                let put = *count < 1;
                *count += usize::from(put);
                put
            };
            if put {
                data.notify();
            }
            put.then_some(())
        };
        for _ in 0..2 {
            room.wait_until(None, put).unwrap();
        }
        sampler.join().unwrap();
    });
}

/// The receiving thread wants a slot and goes back to its poll; two readers let go of theirs.
#[test]
fn whoever_wants_room_is_woken_when_there_is_some() {
    explore("room", 3, || {
        let slab = Arc::new(slab(2));
        let room = Arc::new(Room::default());
        let poll = Arc::new((Bell::default(), Mutex::new(false), loom::sync::Condvar::new()));
        let ringer = Arc::clone(&poll);
        let waker = move || {
            ringer.0.ring(|| {
                *lock(&ringer.1) = true;
                ringer.2.notify_all();
            });
        };
        assert!(room.waker.set(Arc::new(waker)).is_ok());
        let entry = |slot| {
            slab.word(slot).claim();
            Entry { slot, generation: slab.word(slot).publish() }
        };
        let readers: Vec<_> = [entry(0), entry(1)]
            .into_iter()
            .map(|entry| {
                slab.pin(entry).unwrap();
                assert!(!slab.released(entry.slot, slab.word(entry.slot).retire()));
                let (slab, room) = (Arc::clone(&slab), Arc::clone(&room));
                thread::spawn(move || {
                    if slab.released(entry.slot, slab.word(entry.slot).unpin()) {
                        room.signal();
                    }
                })
            })
            .collect();
        let mut free = Vec::new();
        while free.len() < 2 {
            room.want();
            let before = free.len();
            slab.take_free(&mut free);
            if free.len() == before {
                let mut written = lock(&poll.1);
                while !*written {
                    written = poll.2.wait(written).unwrap();
                }
                *written = false;
                drop(written);
                poll.0.answer();
            }
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
