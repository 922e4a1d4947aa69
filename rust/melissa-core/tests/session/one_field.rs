//! Solvers of one rank and one field, whose frames the session reads whole, header and body in one call.

use crate::client::{Client, Identity, PATIENCE};
use crate::study::{Study, config, eventually, fifo};
use melissa_core::schema::Dtype;
use melissa_core::session::SessionConfig;
use melissa_core::wire::handshake::code;
use std::time::{Duration, Instant};

const ELEMENTS: u64 = 100;
const FIELD: [(&str, Dtype, u64); 1] = [("u", Dtype::F32, ELEMENTS)];

fn study(planned: u32, capacity: usize, assembly_slots: usize) -> Study {
    let config = SessionConfig { field_names: vec!["u".into()], ..config(planned) };
    let study = Study::start(config, fifo(capacity, assembly_slots));
    for simulation in 0..planned {
        study.register(simulation, 1, 0);
    }
    study
}

fn joined(study: &Study, simulation: u32) -> Client {
    let mut client = study.connect(Identity::of(simulation));
    client.join(&FIELD).unwrap();
    client
}

fn body(step: u64) -> Vec<u8> {
    (0..ELEMENTS).flat_map(|element| ((step * ELEMENTS + element) as f32).to_le_bytes()).collect()
}

/// Header and body of one step.
fn frame(client: &Client, step: u64) -> Vec<u8> {
    [&client.header(0, step, ELEMENTS).encode()[..], &body(step)].concat()
}

fn expect_step(study: &Study, step: u64) {
    let sample = study.buffer.get(Some(Instant::now() + PATIENCE)).unwrap();
    assert_eq!(sample.key().time_step, step);
    assert_eq!(sample.field_bytes(0), body(step));
}

#[test]
fn frames_arrive_whole_wherever_the_stream_is_cut() {
    let study = study(1, 100, 1);
    let mut client = joined(&study, 0);
    let length = frame(&client, 0).len();
    let mut step = 0;
    for cut in [1, 4, 63, 64, 65, 200, length - 1, length, length + 1, length + 63, length + 64, length + 65]
    {
        let stream: Vec<u8> = (step..step + 3).flat_map(|step| frame(&client, step)).collect();
        client.write(&stream[..cut]);
        // Long enough that the session has read what there is; too short would only test less.
        std::thread::sleep(Duration::from_millis(2));
        client.write(&stream[cut..]);
        for step in step..step + 3 {
            expect_step(&study, step);
        }
        step += 3;
    }
    client.finalize(step).unwrap();
    assert_eq!(study.session.counters().bytes_received, step * ELEMENTS * 4);
}

#[test]
fn a_step_that_comes_again_is_thrown_away_and_the_next_is_taken() {
    let study = study(1, 100, 1);
    let mut client = joined(&study, 0);
    let stream: Vec<u8> = [0, 0, 1, 1, 0, 2].into_iter().flat_map(|step| frame(&client, step)).collect();
    client.write(&stream);
    for step in 0..3 {
        expect_step(&study, step);
    }
    client.finalize(3).unwrap();
    let counters = study.session.counters();
    assert_eq!((counters.duplicates_refused, counters.bytes_discarded), (3, 3 * ELEMENTS * 4));
}

#[test]
fn bytes_behind_finalize_are_refused() {
    let study = study(1, 100, 1);
    let mut client = joined(&study, 0);
    let mut stream = frame(&client, 0);
    client.write(&stream);
    expect_step(&study, 0);
    let finalize = melissa_core::wire::header::Header {
        time_step: 1,
        ..melissa_core::wire::header::Header::control(melissa_core::wire::header::Kind::Finalize, 0)
    };
    stream = [&finalize.encode()[..], &stream].concat();
    client.write(&stream);
    assert_eq!(client.answer().refused().0, code::PROTOCOL);
}

#[test]
fn clients_that_say_nothing_more_hold_no_slot() {
    // As many slots as the idle clients could hold, and no more.
    let study = study(6, 2, 2);
    let mut idle: Vec<Client> = (0..5).map(|simulation| joined(&study, simulation)).collect();
    for (index, client) in (1..).zip(&mut idle) {
        // A whole step, so that each has had a slot; one again, alone, whose body is thrown away; and a part of a header.
        client.write(&frame(client, 0));
        expect_step(&study, 0);
        client.write(&frame(client, 0));
        eventually("it is thrown away", || study.session.counters().bytes_discarded == index * ELEMENTS * 4);
        client.write(&frame(client, 1)[..10]);
    }
    let mut client = joined(&study, 5);
    for step in 0..50 {
        client.write(&frame(&client, step));
        expect_step(&study, step);
    }
    client.finalize(50).unwrap();
    drop(idle);
}
