//! Peers that hold the study key and mean harm, or are broken in a way that looks like it.

use crate::client::{Answer, Client, Identity, open};
use crate::study::{FIELDS, Study, bytes_of, config, eventually, fifo, key, send_step};
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, Status};
use melissa_core::wire::handshake::encode_frame;
use melissa_core::wire::header::{Header, Kind};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

#[test]
fn a_finalize_of_more_time_steps_than_came_is_refused_with_both_numbers() {
    let study = Study::start(config(2), fifo(10, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let mut attacker = study.connect(Identity::of(0));
    let (code, message) = attacker.finalize(u64::MAX).unwrap_err().refused();
    assert_eq!(code, "step");
    assert!(message.contains("18446744073709551615 time steps, and 0"), "{message}");
    assert!(study.wait_status(0, Status::Disconnected).error.contains(&message));
    let mut attacker = study.joined(Identity::of(1));
    assert!(send_step(&mut attacker, 0, 0));
    // One field of the next step is not a step.
    assert!(attacker.send(0, 1, &[0; 40]));
    let (code, message) = attacker.finalize(2).unwrap_err().refused();
    assert_eq!(code, "step");
    assert!(message.contains("2 time steps, and 1"), "{message}");
    assert_eq!(study.session.expected_samples(), None, "nothing was learned from it");
    assert_eq!(study.get(), Some(key(1, 0, 0)));
    study.register(1, 2, 0);
    let mut honest = study.joined(Identity::of(1).attempt(2));
    assert!(send_step(&mut honest, 0, 1));
    honest.finalize(2).unwrap();
    assert_eq!(study.session.expected_samples(), Some(4));
}

#[test]
fn after_a_stop_one_finalize_is_answered_and_the_next_refused() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    study.session.stop().unwrap();
    // A peer that finalizes again and again, and reads nothing, would have answers pile up.
    for _ in 0..3 {
        client.send_finalize(0);
    }
    assert_eq!(client.answer(), Answer::Stop);
    assert_eq!(client.answer(), Answer::Frame(Kind::FinalizeAck));
    let (code, message) = client.answer().refused();
    assert_eq!(code, "protocol");
    assert!(message.contains("nothing after Finalize was expected, and Finalize came"), "{message}");
    assert_eq!(client.answer(), Answer::Closed);
}

#[test]
fn the_text_of_a_refusal_is_one_short_line_whatever_was_sent() {
    let study = Study::start(config(1), fifo(10, 1));
    let long = "\u{7f}".repeat(60_000);
    let escape = "\\u001b[2J\\r\\nERROR: the study failed";
    let payloads = [
        format!("{{\"fields\":[{{\"name\":\"a\",\"dtype\":\"{escape}\",\"size\":1}}]}}"),
        format!("{{\"fields\":[{{\"name\":\"a\",\"dtype\":\"{long}\",\"size\":1}}]}}"),
        format!("{{\"fields\":[{{\"name\":\"a\",\"dtype\":\"float32\",\"size\":\"{long}\"}}]}}"),
        format!("{{\"fields\":[{{\"name\":\"{escape}\",\"dtype\":\"float32\",\"size\":1}}]}}"),
        format!("{{\"fields\":\"{long}\"}}"),
    ];
    for (attempt, payload) in (1..).zip(&payloads) {
        study.register(0, attempt, 0);
        let mut client = study.connect(Identity::of(0).attempt(attempt));
        let header = Header::control(Kind::Join, payload.len() as u64).encode();
        client.write(&[&header[..], payload.as_bytes()].concat());
        let (code, message) = client.answer().refused();
        assert_eq!(code, "protocol");
        let state = study.wait_status(0, Status::Disconnected);
        let texts = study.refusals();
        for text in texts.iter().chain([&message, &state.error]) {
            assert!(!text.chars().any(char::is_control), "{text:?}");
            assert!(text.chars().count() < 3000, "{} characters", text.chars().count());
        }
        assert_eq!(texts.len(), 1);
    }
}

#[test]
fn a_join_that_cannot_be_laid_out_is_counted_like_every_refusal() {
    let study = Study::start(config(2), fifo(10, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let _first = study.joined(Identity::of(0));
    let mut other = study.connect(Identity::of(1));
    assert_eq!(other.join(&[FIELDS[0], ("flux", Dtype::F64, 7)]).unwrap_err().refused().0, "size");
    assert_eq!(study.session.counters().connections_refused, 1);
    let texts = study.refusals();
    assert!(texts.len() == 1 && texts[0].contains("declares 7"), "{texts:?}");
}

#[test]
fn steps_that_come_out_of_order_after_a_stop_are_not_declared() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    assert!(send_step(&mut client, 0, 0));
    assert_eq!(study.get(), Some(key(0, 0, 0)));
    study.session.stop().unwrap();
    for time_step in [1, 2, 1000, 2000, 3, u64::MAX, 4] {
        for (field, (_, dtype, size)) in FIELDS.into_iter().enumerate() {
            assert!(client.send(field, time_step, &vec![0; size as usize * dtype.size()]));
        }
    }
    client.send_finalize(5);
    assert_eq!(client.answer(), Answer::Stop);
    assert_eq!(client.answer(), Answer::Frame(Kind::FinalizeAck));
    assert_eq!(study.session.ledger_sums().declared, 5);
    eventually("all of it is read", || study.session.counters().bytes_discarded == 7 * 88);
}

#[test]
fn a_rank_that_goes_on_after_another_has_finalized_is_told_instead_of_held_for_ever() {
    let study = Study::start(config(2), fifo(10, 2));
    // The step that can never be whole is there first, or the finalize is.
    for (simulation, finalize_first) in [(0, true), (1, false)] {
        study.register(simulation, 1, 0);
        let mut ranks = [0, 1].map(|rank| study.connect(Identity::of(simulation).rank(rank, 2)));
        for rank in &mut ranks {
            rank.send_join(&[("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)]);
        }
        for rank in &mut ranks {
            rank.read_welcome().unwrap();
        }
        let [mut done, mut other] = ranks;
        let finalize = |done: &mut Client| {
            done.send_finalize(0);
            if finalize_first {
                done.read_acknowledgement().unwrap();
            }
        };
        if finalize_first {
            finalize(&mut done);
        }
        for step in 0..2 {
            assert!(other.send(0, step, &[0; 20]) && other.send(1, step, &[0; 24]));
        }
        if !finalize_first {
            // Nothing shows from outside that a rank is held; the other order would pass as well.
            std::thread::sleep(Duration::from_millis(50));
            finalize(&mut done);
        }
        let (code, message) = other.answer().refused();
        assert_eq!(code, "step");
        assert!(message.contains("rank 0 has finalized after 0 time steps"), "{message}");
        let state = study.wait_status(simulation, Status::Disconnected);
        assert!(state.error.contains("time step 0 of rank 0 will never come"), "{}", state.error);
    }
}

/// How a peer goes away.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    /// Closes its socket.
    Close,
    /// Says that nothing more comes, and waits.
    HalfClose,
    /// As a process that is killed with bytes unread, or a machine that was started again.
    Reset,
}

#[test]
fn a_peer_may_leave_at_any_stage_in_any_way_and_leaves_nothing_behind() {
    let study = Study::start(SessionConfig { payload_crc: true, ..config(2) }, fifo(4, 2));
    study.register(1, 1, 0);
    let mut honest = study.joined(Identity::of(1));
    let mut attempt = 0;
    for leaving in [Leaving::Close, Leaving::HalfClose, Leaving::Reset] {
        // Nothing, a part of Hello, Hello, accepted, joined, welcomed, within a header, within a body, after one field.
        for stage in 0..9 {
            attempt += 1;
            study.register(0, attempt, 0);
            let who = Identity::of(0).attempt(attempt);
            let hello = encode_frame(Kind::Hello, &who.hello());
            let mut stream = match stage {
                0..=2 => {
                    let mut stream = open(study.session.address());
                    let length = [0, 100, hello.len()][stage];
                    stream.write_all(&hello[..length]).unwrap();
                    stream
                }
                3 => study.connect(who).stream,
                4 => {
                    let mut client = study.connect(who.rank(0, 2));
                    client.send_join(&FIELDS);
                    client.stream
                }
                _ => {
                    let mut client = study.joined(who);
                    let (body, header) =
                        (bytes_of(key(0, 0, 0), 0, Dtype::F32, 0, 10), client.header(0, 0, 10));
                    let header = Header { flags: 1, payload_crc: crc32c::crc32c(&body), ..header };
                    let frame = [&header.encode()[..], &body].concat();
                    client.write(&frame[..[0, 30, 80, frame.len()][stage - 5]]);
                    client.stream
                }
            };
            match leaving {
                Leaving::Close => {}
                Leaving::HalfClose => stream.shutdown(Shutdown::Write).unwrap(),
                Leaving::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
            }
            if let Leaving::HalfClose = leaving {
                let _ = stream.read_to_end(&mut Vec::new());
            }
            drop(stream);
            eventually("it is gone", || {
                let counters = study.session.counters();
                (counters.connections, counters.handshakes_pending) == (1, 0)
            });
            assert!(send_step(&mut honest, 0, u64::from(attempt) - 1), "{leaving:?} at stage {stage}");
            assert_eq!(study.get(), Some(key(1, 0, u64::from(attempt) - 1)));
            let total = study.buffer.slot_counts().total();
            let slots: Vec<_> = std::iter::from_fn(|| study.buffer.take_slot()).collect();
            assert_eq!(slots.len(), total, "{leaving:?} at stage {stage} keeps a slot");
        }
    }
    let sums = study.session.ledger_sums();
    assert_eq!((sums.complete, sums.declared), (u64::from(attempt), u64::from(attempt) + 1));
}

#[test]
fn a_session_cut_in_two_at_any_byte_is_put_together() {
    let study = Study::start(config(1), fifo(4, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let frames = |client: &Client, step: u64| -> Vec<u8> {
        let frame = |(field, (_, dtype, size)): (usize, (&str, Dtype, u64))| {
            [
                &client.header(field, step, size).encode()[..],
                &bytes_of(key(0, 0, step), field, dtype, 0, size),
            ]
            .concat()
        };
        FIELDS.into_iter().enumerate().flat_map(frame).collect()
    };
    let length = frames(&client, 0).len();
    for cut in 1..length {
        let step = cut as u64 - 1;
        let bytes = frames(&client, step);
        assert!(client.write(&bytes[..cut]));
        // The receiving thread has had a turn with the first part before the second is there.
        study.session.counters();
        assert!(client.write(&bytes[cut..]));
        assert_eq!(study.get(), Some(key(0, 0, step)), "cut at {cut}");
    }
    client.finalize(length as u64 - 1).unwrap();
}

#[test]
fn duplicates_without_end_are_counted_and_take_nothing_from_others() {
    let study = Study::start(config(2), fifo(10, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let mut repeats = study.joined(Identity::of(0));
    let mut other = study.joined(Identity::of(1));
    assert!(send_step(&mut repeats, 0, 0));
    assert_eq!(study.get(), Some(key(0, 0, 0)));
    for step in 0..200 {
        for _ in 0..20 {
            assert!(send_step(&mut repeats, 0, 0));
        }
        assert!(send_step(&mut other, 0, step));
        assert_eq!(study.get(), Some(key(1, 0, step)));
    }
    // They are no fault that ends the attempt, and only the first is put into words.
    assert!(send_step(&mut repeats, 0, 1));
    assert_eq!(study.get(), Some(key(0, 0, 1)));
    let sums = study.session.ledger_sums();
    assert_eq!((sums.declared, sums.duplicates_refused), (202, 2 * 20 * 200));
    assert_eq!(study.refusals().len(), 1);
}
