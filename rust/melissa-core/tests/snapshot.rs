//! Snapshots that do not fit or are damaged, and snapshots taken while threads publish and draw. That a restored buffer
//! draws what the other would have drawn is in tests/buffer_laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "buffer_laws/samples.rs"]
mod samples;

use melissa_core::buffer::{Buffer, BufferConfig, Kind};
use melissa_core::error::BufferError;
use melissa_core::schema::{Dtype, Field, Schema};
use melissa_core::snapshot::{RestoredSample, Snapshot, SnapshotError, SnapshotState};
use proptest::prelude::*;
use samples::{Saved, fill, key, number_of, parameters, schema};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

fn config(kind: Kind, pseudo_epochs: u32) -> BufferConfig {
    BufferConfig {
        kind,
        capacity: 8,
        watermark: 3,
        pseudo_epochs,
        batch_size: 2,
        seed: 5,
        assembly_slots: 2,
        lent_slots: Some(2),
    }
}

fn publish(buffer: &Buffer, number: u64) -> bool {
    buffer.take_slot().is_some_and(|mut slot| {
        fill(&mut slot, number);
        buffer.publish(slot, key(number), &parameters(number)).is_ok()
    })
}

/// A buffer somewhere in its life: `puts` samples tried, then `draws`, then more of both, then perhaps the end.
fn lived(config: &BufferConfig, puts: u64, draws: usize, closed: bool, end_draws: usize) -> Buffer {
    let buffer = Buffer::new(config.clone()).unwrap();
    buffer.bind(schema()).unwrap();
    let passes = config.pseudo_epochs > 1;
    let mut number = 0;
    for round in 0..2 {
        for _ in 0..puts {
            if !(passes && buffer.population() == config.capacity) && publish(&buffer, number) {
                number += 1;
            }
        }
        for _ in 0..draws {
            let _ = buffer.get(Some(Instant::now()));
        }
        if round == 1 && closed {
            buffer.close();
            for _ in 0..end_draws {
                let _ = buffer.get(Some(Instant::now()));
            }
        }
    }
    buffer
}

fn saved(snapshot: &mut Snapshot) -> Vec<Saved> {
    snapshot.samples.by_ref().map(|sample| Saved::of(&sample)).collect()
}

fn give(saved: &Saved, sample: &mut RestoredSample) -> Result<(), BufferError> {
    for (field, bytes) in saved.fields.iter().enumerate() {
        sample.set_field(field, bytes)?;
    }
    sample.set_parameters(&saved.parameters)
}

fn restore(config: &BufferConfig, state: &SnapshotState, saved: &[Saved]) -> Result<Buffer, BufferError> {
    Buffer::restore(config.clone(), schema(), state, |index, sample| {
        // A state that lists more samples than there are payloads: the source says so.
        let saved = saved.get(index).ok_or(BufferError::EndOfData)?;
        give(saved, sample)
    })
}

/// What restoring a Reservoir's snapshot says after `damage`.
fn refused(damage: impl FnOnce(&mut SnapshotState)) -> String {
    let config = config(Kind::Reservoir, 1);
    let mut snapshot = lived(&config, 8, 4, false, 0).snapshot().unwrap();
    let saved = saved(&mut snapshot);
    damage(&mut snapshot.state);
    let error = restore(&config, &snapshot.state, &saved).unwrap_err();
    assert!(matches!(error, BufferError::Snapshot(_)), "{error:?}");
    error.to_string()
}

#[test]
fn a_snapshot_of_another_configuration_is_refused_with_both_values() {
    let text = refused(|state| state.kind = "FIFO".into());
    assert!(text.contains("kind is FIFO") && text.contains("says Reservoir"), "{text}");
    let text = refused(|state| state.capacity = 9);
    assert!(text.contains("capacity is 9") && text.contains("says 8"), "{text}");
    let text = refused(|state| state.watermark = 0);
    assert!(text.contains("watermark is 0") && text.contains("says 3"), "{text}");
    let text = refused(|state| state.batch_size = u64::MAX);
    assert!(text.contains(&format!("batch size is {}", u64::MAX)) && text.contains("says 2"), "{text}");
    let text = refused(|state| state.pseudo_epochs = 2);
    assert!(text.contains("pseudo_epochs is 2") && text.contains("says 1"), "{text}");
}

#[test]
fn a_snapshot_of_another_schema_is_refused_with_both_schemas() {
    let text = refused(|state| state.fields[0].dtype = "complex64".into());
    assert!(text.contains("u (9 x complex64)") && text.contains("u (9 x float64)"), "{text}");
    let text = refused(|state| state.nb_parameters = 3);
    assert!(text.contains("and 3 parameters") && text.contains("and 2 parameters"), "{text}");
}

#[test]
fn a_state_that_contradicts_itself_is_refused_with_what_came_and_what_was_expected() {
    let text = refused(|state| state.samples.extend_from_within(..1));
    assert!(text.contains("population: 9 came, and at most the capacity, 8"), "{text}");
    let text = refused(|state| state.evictable[0] = 8);
    assert!(text.contains("evictable samples: 8 came, and a position below the population, 8"), "{text}");
    let text = refused(|state| state.evictable.extend_from_within(..1));
    assert!(text.contains("twice came, and each position once"), "{text}");
    let text = refused(|state| state.evictable.truncate(state.evictable.len() - 1));
    assert!(text.contains("missing in it came, and all that were seen"), "{text}");
    let text = refused(|state| {
        let seen = state.evictable[0] as usize;
        state.samples[seen].deliveries = 0;
    });
    assert!(text.contains("delivered 0 times, in it came"), "{text}");
    let text = refused(|state| state.published = 7);
    assert!(text.contains("samples published: 7 came, and at least the population, 8"), "{text}");
    let text = refused(|state| state.drawn = 1);
    assert!(text.contains("samples drawn: 1 came, and at least"), "{text}");
    let text = refused(|state| {
        state.drain = Some(melissa_core::snapshot::DrainState { next: 0, passes_left: 1 });
    });
    assert!(text.contains("none before the end of reception"), "{text}");
}

/// Delivers all that is there; returns the numbers.
fn drained(buffer: &Buffer) -> Vec<u64> {
    std::iter::from_fn(|| buffer.get(Some(Instant::now())).ok()).map(|sample| number_of(&sample)).collect()
}

#[test]
fn a_restored_buffer_takes_samples_again_where_reception_was_over_too_early() {
    for kind in Kind::ALL {
        for end_draws in [0, 5] {
            let config = config(kind, 1);
            let mut snapshot = lived(&config, 8, 3, true, end_draws).snapshot().unwrap();
            let saved = saved(&mut snapshot);
            let restored = restore(&config, &snapshot.state, &saved).unwrap();
            let mut left: Vec<u64> = snapshot.state.samples.iter().map(|sample| sample.time_step).collect();
            restored.reopen().unwrap();
            assert!(!restored.is_closed() && restored.remaining().is_none());
            while restored.population() < config.capacity {
                let number = 100 + left.len() as u64;
                assert!(publish(&restored, number));
                left.push(number);
            }
            // A further cut is in order; and of those that are there, the ones that were seen may be replaced, as many.
            let mut again = restored.snapshot().unwrap();
            let bytes: Vec<Saved> = again.samples.by_ref().map(|sample| Saved::of(&sample)).collect();
            let restored = restore(&config, &again.state, &bytes).unwrap();
            let seen = again.state.samples.iter().filter(|sample| sample.deliveries > 0).count();
            assert_eq!((200..).take_while(|number| publish(&restored, *number)).count(), seen, "{kind:?}");
            restored.close();
            let delivered = drained(&restored);
            assert_eq!(delivered.len(), config.capacity, "{kind:?}");
            assert_eq!(
                delivered.iter().filter(|number| left.contains(number)).count(),
                config.capacity - seen
            );
        }
    }
}

#[test]
fn a_buffer_amid_its_passes_takes_no_samples_again() {
    let config = config(Kind::Firo, 3);
    let mut snapshot = lived(&config, 4, 0, true, 5).snapshot().unwrap();
    let saved = saved(&mut snapshot);
    let error = restore(&config, &snapshot.state, &saved).unwrap().reopen().unwrap_err().to_string();
    assert!(error.contains("its 3 passes") && error.contains("use an older one"), "{error}");
}

#[test]
fn restored_samples_are_as_old_as_they_were() {
    let config = config(Kind::Fifo, 1);
    let buffer = lived(&config, 4, 2, false, 0);
    let mut snapshot = buffer.snapshot().unwrap();
    let saved = saved(&mut snapshot);
    let restored = restore(&config, &snapshot.state, &saved).unwrap();
    let (before, after) = (buffer.statistics(), restored.statistics());
    assert_eq!((after.age_max, after.age_mean), (before.age_max, before.age_mean));
    assert_eq!(after.age_max, snapshot.state.samples.len() as u64 - 1);
}

#[test]
fn a_payload_that_is_incomplete_or_of_another_size_is_refused() {
    let config = config(Kind::Fifo, 1);
    let mut snapshot = lived(&config, 3, 0, false, 0).snapshot().unwrap();
    let saved = saved(&mut snapshot);
    let restored = |give: &dyn Fn(usize, &mut RestoredSample) -> Result<(), BufferError>| {
        Buffer::restore::<BufferError>(config.clone(), schema(), &snapshot.state, |index, sample| {
            give(index, sample)
        })
    };
    let error = restored(&|index, sample| sample.set_field(0, &saved[index].fields[0])).unwrap_err();
    let BufferError::Snapshot(SnapshotError::Payload { index: 0, missing }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(missing, "field \"v\"");
    let error = restored(&|index, sample| {
        sample.set_field(0, &saved[index].fields[0])?;
        sample.set_field(1, &saved[index].fields[1])
    })
    .unwrap_err();
    assert!(error.to_string().contains("sample 0 of the snapshot came without its parameters"), "{error}");
    let error = restored(&|index, sample| sample.set_field(0, &saved[index].fields[0][1..])).unwrap_err();
    assert!(matches!(error, BufferError::FieldBytes { expected: 72, got: 71, .. }), "{error:?}");
    let error = restored(&|_, sample| sample.set_parameters(&[0; 17])).unwrap_err();
    assert!(matches!(error, BufferError::Count { expected: 16, got: 17, .. }), "{error:?}");
    let error = restored(&|_, _| Err(BufferError::Timeout)).unwrap_err();
    assert!(matches!(error, BufferError::Timeout), "the source's own error comes back: {error:?}");
}

#[test]
fn payload_bits_and_64_bit_integers_survive() {
    let config = config(Kind::Fifo, 1);
    let fields = vec![Field { name: "u".into(), dtype: Dtype::F64, size: 2 }];
    let schema = Arc::new(Schema::new(fields, 1).unwrap());
    let buffer = Buffer::new(config.clone()).unwrap();
    buffer.bind(Arc::clone(&schema)).unwrap();
    // A signalling NaN with a payload, and a number that no float64 holds.
    let bits = 0x7ff0_0000_dead_beef_u64.to_ne_bytes();
    let time_step = u64::MAX - 1;
    let mut slot = buffer.take_slot().unwrap();
    slot.field_bytes_mut(0).copy_from_slice(&[bits, bits].concat());
    let key = melissa_core::buffer::SampleKey { simulation: u32::MAX, draw: u32::MAX, time_step };
    buffer.publish(slot, key, &[f64::from_ne_bytes(bits)]).unwrap();
    let mut snapshot = buffer.snapshot().unwrap();
    let saved = saved(&mut snapshot);
    assert_eq!(saved[0].parameters, bits);
    let json = serde_json::to_string(&snapshot.state).unwrap();
    let state: SnapshotState = serde_json::from_str(&json).unwrap();
    assert_eq!(state, snapshot.state);
    let restored =
        Buffer::restore::<BufferError>(config, schema, &state, |index, sample| give(&saved[index], sample))
            .unwrap();
    let sample = restored.peek(0).unwrap();
    assert_eq!((sample.key(), sample.parameters_bytes()), (key, &bits[..]));
    assert_eq!(sample.field_bytes(0), [bits, bits].concat());
}

/// A change of a JSON document: which of its nodes, and to what.
#[derive(Clone, Debug)]
enum Mutation {
    Number(u64),
    Small(u64),
    Add(i8),
    Remove,
    Repeat,
    Swap,
}

fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, Mutation)>> {
    let mutation = prop_oneof![
        any::<u64>().prop_map(Mutation::Number),
        (0..12u64).prop_map(Mutation::Small),
        (-2..3i8).prop_map(Mutation::Add),
        Just(Mutation::Remove),
        Just(Mutation::Repeat),
        Just(Mutation::Swap),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), mutation), 1..4)
}

/// Applies the mutation to node `target` of the document, counted in depth-first order.
fn mutate(value: &mut Value, target: &mut usize, mutation: &Mutation) {
    if *target == 0 {
        *target = usize::MAX;
        match (value, mutation) {
            (Value::Bool(flag), _) => *flag = !*flag,
            (Value::Array(items), Mutation::Remove) => drop(items.pop()),
            (Value::Array(items), Mutation::Repeat) => items.extend(items.first().cloned()),
            (Value::Array(items), Mutation::Swap) if items.len() > 1 => items.swap(0, 1),
            (value, Mutation::Remove) => *value = Value::Null,
            (value, Mutation::Number(number) | Mutation::Small(number)) => *value = (*number).into(),
            (value, Mutation::Add(change)) => {
                if let Some(number) = value.as_u64() {
                    *value = number.wrapping_add_signed((*change).into()).into();
                }
            }
            _ => {}
        }
        return;
    }
    *target -= 1;
    let mut go_on = |item: &mut Value| {
        if *target != usize::MAX {
            mutate(item, target, mutation);
        }
    };
    match value {
        Value::Array(items) => items.iter_mut().for_each(&mut go_on),
        Value::Object(items) => items.values_mut().for_each(&mut go_on),
        _ => {}
    }
}

fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(items) => items.values().map(nodes).sum(),
        _ => 0,
    }
}

/// States that were mutated and still restored.
static ACCEPTED: AtomicU64 = AtomicU64::new(0);
/// States that were mutated and refused for what they say.
static REFUSED: AtomicU64 = AtomicU64::new(0);

fn restores_or_says_why(
    config: &BufferConfig,
    snapshot: &mut Snapshot,
    mutations: &[(prop::sample::Index, Mutation)],
) {
    let saved = saved(snapshot);
    let mut document = serde_json::to_value(&snapshot.state).unwrap();
    for (index, mutation) in mutations {
        let mut target = index.index(nodes(&document));
        mutate(&mut document, &mut target, mutation);
    }
    let Ok(state) = serde_json::from_value::<SnapshotState>(document) else { return };
    let mutated = state != snapshot.state;
    let buffer = match restore(config, &state, &saved) {
        Ok(buffer) => buffer,
        Err(error) => {
            assert!(mutated, "{error}");
            assert!(matches!(error, BufferError::Snapshot(_) | BufferError::EndOfData), "{error:?}");
            REFUSED.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    ACCEPTED.fetch_add(u64::from(mutated), Ordering::Relaxed);
    // What is accepted is whole: the buffer is in that state, and gives what it owes.
    assert_eq!(buffer.snapshot().unwrap().state, state);
    // One sample more than the places is the end of a run of several passes.
    if config.pseudo_epochs == 1 || buffer.population() < config.capacity {
        let _ = publish(&buffer, 1_000);
    }
    let population = buffer.population();
    let more = !state.closed && population < config.capacity;
    assert!(!more || publish(&buffer, 1_001));
    buffer.close();
    let owed = buffer.remaining();
    let mut drawn = 0;
    while buffer.get(Some(Instant::now() + Duration::from_secs(20))).is_ok() {
        drawn += 1;
    }
    assert!(matches!(buffer.get(None), Err(BufferError::EndOfData)));
    assert_eq!(buffer.population(), 0);
    let expected = owed.unwrap_or((population + usize::from(more)) * config.pseudo_epochs as usize);
    assert_eq!(drawn, expected);
}

#[test]
fn a_mutated_state_is_refused_or_restored_whole_and_never_panics() {
    let long = std::env::var_os("MELISSA_LONG").is_some_and(|value| value == "1");
    let cases = if long { 200_000 } else { 3_000 };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::with_source_file(file!())
    });
    let lives = (0..5usize, 0..12u64, 0..12usize, any::<bool>(), 0..20usize);
    let run = runner.run(&(lives, mutations()), |((policy, puts, draws, closed, end_draws), mutations)| {
        let kinds = [Kind::Fifo, Kind::Firo, Kind::Firo, Kind::Reservoir, Kind::BatchReservoir];
        let config = config(kinds[policy], if policy == 2 { 3 } else { 1 });
        let mut snapshot = lived(&config, puts, draws, closed, end_draws).snapshot().unwrap();
        restores_or_says_why(&config, &mut snapshot, &mutations);
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    let (accepted, refused) = (ACCEPTED.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed));
    assert!(accepted > 0 && refused > 0, "{accepted} mutated states restored, {refused} refused");
}

/// Publishers and samplers go on beside the cuts: nothing stands still, no payload is torn, and each cut restores.
#[test]
fn cuts_beside_running_threads_are_whole_and_restore() {
    for (kind, passes) in Kind::ALL.into_iter().map(|kind| (kind, 1)).chain([(Kind::Firo, 20)]) {
        let config = BufferConfig { capacity: 400, watermark: 20, ..config(kind, passes) };
        // Several passes gather every sample first.
        let total = if passes > 1 { 400 } else { 6_000 };
        let buffer = Buffer::new(config.clone()).unwrap();
        buffer.bind(schema()).unwrap();
        let (over, cuts) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let (buffer, over, cuts) = (&buffer, &over, &cuts);
            scope.spawn(move || {
                let until = Instant::now() + Duration::from_secs(60);
                for number in 0..total {
                    let u: Vec<u8> =
                        std::iter::repeat_n((number as f64).to_ne_bytes(), 9).flatten().collect();
                    let fields: [&[u8]; 2] = [&u, &[number as u8; 3]];
                    buffer.put(key(number), &fields, &parameters(number), Some(until)).unwrap();
                }
                buffer.close();
            });
            for _ in 0..2 {
                scope.spawn(move || {
                    let until = Instant::now() + Duration::from_secs(60);
                    for drawn in 1u64.. {
                        match buffer.get(Some(until)) {
                            Ok(sample) => number_of(&sample),
                            Err(BufferError::EndOfData) => return over.store(true, Ordering::Relaxed),
                            Err(other) => panic!("{kind:?}: {other}"),
                        };
                        // Now and then a cut begins and ends beside the draws, however threads are scheduled.
                        let before = cuts.load(Ordering::Relaxed);
                        while drawn.is_multiple_of(500)
                            && cuts.load(Ordering::Relaxed) < before + 2
                            && !over.load(Ordering::Relaxed)
                        {
                            assert!(Instant::now() < until, "no cut is taken");
                            thread::yield_now();
                        }
                    }
                });
            }
            while !over.load(Ordering::Relaxed) {
                let mut snapshot = buffer.snapshot().unwrap();
                thread::yield_now();
                let numbers: Vec<u64> =
                    snapshot.state.samples.iter().map(|sample| sample.time_step).collect();
                let mut saved = Vec::new();
                for (sample, number) in snapshot.samples.by_ref().zip(&numbers) {
                    assert_eq!(number_of(&sample), *number);
                    saved.push(Saved::of(&sample));
                }
                let restored = restore(&config, &snapshot.state, &saved).unwrap();
                assert_eq!(restored.snapshot().unwrap().state, snapshot.state);
                cuts.fetch_add(1, Ordering::Relaxed);
            }
        });
        let cuts = cuts.into_inner();
        assert!(cuts > 4, "{kind:?}: {cuts} cuts");
        assert!(buffer.snapshot().unwrap().state.samples.is_empty());
    }
}

#[test]
fn a_pinned_sample_outlives_its_eviction_and_its_slot_is_free_when_its_pin_goes() {
    let config = BufferConfig { watermark: 1, ..config(Kind::Reservoir, 1) };
    let buffer = lived(&config, 8, 60, false, 0);
    let slots = buffer.slot_counts().total();
    let mut snapshot = buffer.snapshot().unwrap();
    let before: Vec<u64> = snapshot.state.samples.iter().map(|sample| sample.time_step).collect();
    // Eviction goes on until every slot but the pinned ones holds a successor.
    let published = (100..200).take_while(|number| publish(&buffer, *number)).count();
    assert_eq!(published, slots - config.capacity, "evictions take the slots that nobody pins");
    assert!(buffer.take_slot().is_none());
    let sample = snapshot.samples.next().unwrap();
    assert_eq!(number_of(&sample), before[0]);
    assert!(!sample.is_copy());
    drop(sample);
    let rest: Vec<u64> = snapshot.samples.by_ref().map(|sample| number_of(&sample)).collect();
    assert_eq!(rest, before[1..]);
    let free = || std::iter::from_fn(|| buffer.take_slot()).collect::<Vec<_>>().len();
    assert_eq!(free(), slots - config.capacity);
    // Dropped unsaved, a snapshot lets go of everything, too.
    let snapshot = buffer.snapshot().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while free() > 0 && Instant::now() < until {
        drop(buffer.get(None).unwrap());
        let _ = publish(&buffer, 300);
    }
    assert_eq!(free(), 0, "evictions take the slots that nobody pins");
    drop(snapshot);
    assert_eq!(free(), slots - config.capacity);
}
