//! Peers that have not proved the study key, and will not: how long and how many they may be, and what they replay.

use crate::client::{Answer, Client, Identity, expect, open, read_frame, write_message};
use crate::study::{Study, config, fifo, key, send_step};
use melissa_core::session::{MAX_PENDING_HANDSHAKES, SessionConfig};
use melissa_core::wire::auth::{Side, Transcript, prove};
use melissa_core::wire::handshake::{Challenge, Proof, encode_frame, parse};
use melissa_core::wire::header::Kind;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn a_stranger_who_sends_a_byte_now_and_then_is_closed_in_time_all_the_same() {
    let timeout = Duration::from_millis(200);
    let study = Study::start(SessionConfig { handshake_timeout: timeout, ..config(1) }, fifo(10, 1));
    let hello = encode_frame(Kind::Hello, &Identity::of(0).hello());
    let mut stream = open(study.session.address());
    let start = Instant::now();
    // Each byte would be news, were it the silence that is limited. It has ended long before the frame has.
    let pause = Duration::from_millis(10);
    assert!(pause * hello.len() as u32 > 10 * timeout);
    let sent = hello.iter().take_while(|&&byte| {
        std::thread::sleep(pause);
        stream.write_all(&[byte]).is_ok()
    });
    assert!(sent.count() < hello.len());
    assert!(start.elapsed() >= timeout);
    let refusals = study.refusals();
    assert!(refusals.len() == 1 && refusals[0].contains("within 0.2 s"), "{refusals:?}");
}

#[test]
fn a_thousand_strangers_at_the_door_do_not_keep_those_inside_from_their_turns() {
    let timeout = Duration::from_millis(100);
    let study = Study::start(SessionConfig { handshake_timeout: timeout, ..config(2) }, fifo(10, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let mut inside = study.joined(Identity::of(0));
    let strangers: Vec<_> = (0..1000).map(|_| open(study.session.address())).collect();
    // Behind all of them.
    let address = study.session.address().to_owned();
    let late = std::thread::spawn(move || Client::connect(&address, Identity::of(1)).map(|_| ()));
    let mut step = 0;
    while study.session.counters().connections_refused < 1000 {
        assert!(send_step(&mut inside, 0, step));
        assert_eq!(study.get(), Some(key(0, 0, step)));
        assert!(study.session.counters().handshakes_pending <= MAX_PENDING_HANDSHAKES as u64);
        step += 1;
    }
    assert!(step >= 1000 / MAX_PENDING_HANDSHAKES as u64, "{step} steps");
    assert_eq!(late.join().unwrap(), Ok(()));
    drop(strangers);
}

#[test]
fn a_proof_that_was_recorded_does_not_hold_on_another_connection() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let who = Identity::of(0);
    let hello = who.hello();
    let challenge = |stream: &mut TcpStream| {
        write_message(stream, &hello);
        let challenge: Challenge = parse(&expect(stream, Kind::Challenge).unwrap()).unwrap();
        challenge
    };
    let mut recorded = open(study.session.address());
    let theirs = challenge(&mut recorded);
    let transcript = Transcript {
        protocol: hello.protocol,
        role: &hello.role,
        client_nonce: hello.nonce,
        server_nonce: theirs.nonce,
        study_epoch: hello.study_epoch,
        simulation: hello.simulation,
        attempt: hello.attempt,
        rank: hello.rank,
        size: hello.size,
    };
    let proof = Proof { proof: prove(&who.key, Side::Client, &transcript) };
    // The same Hello, with the client's nonce, and the same proof.
    let mut replayed = open(study.session.address());
    let other = challenge(&mut replayed);
    assert_ne!(other.nonce, theirs.nonce);
    write_message(&mut replayed, &proof);
    assert_eq!(read_frame(&mut replayed).err().unwrap().refused().0, "key");
    write_message(&mut recorded, &proof);
    assert!(expect(&mut recorded, Kind::Accepted).is_ok(), "where it belongs, it holds");
}

#[test]
fn rubbish_where_the_proof_should_be_ends_the_connection_without_a_word() {
    let study = Study::start(config(1), fifo(10, 1));
    let mut stream = open(study.session.address());
    write_message(&mut stream, &Identity::of(0).hello());
    expect(&mut stream, Kind::Challenge).unwrap();
    stream.write_all(&[0; 64]).unwrap();
    assert_eq!(read_frame(&mut stream).err(), Some(Answer::Closed));
    let refusals = study.refusals();
    assert!(
        refusals.len() == 1 && refusals[0].contains("calls itself rank 0 of simulation 0"),
        "{refusals:?}"
    );
}
