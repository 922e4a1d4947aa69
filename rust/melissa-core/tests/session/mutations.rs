//! Random and mutated frames thrown at a session by peers at any stage: a short relative of the fuzzer under rust/fuzz.

use crate::client::{Client, Identity, open};
use crate::study::{FIELDS, Study, bytes_of, config, eventually, fifo, key, send_step};
use melissa_core::session::SessionConfig;
use melissa_core::wire::handshake::{FieldShare, Join, encode_frame};
use melissa_core::wire::header::{HEADER_SIZE, Header, Kind};
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// How far the peer has come honestly.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Connected,
    Accepted,
    Welcomed,
}

/// The frame that is mutated.
#[derive(Clone, Copy, Debug)]
enum Base {
    Hello,
    Join,
    Data,
    Finalize,
}

#[derive(Clone, Debug)]
enum Mutation {
    /// One bit of the frame, wherever it is.
    Flip { at: prop::sample::Index, bit: u8 },
    /// One number of the header, whose checksum is made right again.
    Number { at: usize, number: u64, width: usize },
    /// The frame ends early.
    Cut(prop::sample::Index),
    /// Something lies between two frames.
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..20u64, any::<u64>(), Just(u64::MAX), Just(1 << 63), Just(u64::from(u32::MAX)), Just(4033)]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        1 => (index(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        6 => (6..60usize, number(), prop::sample::select(vec![1, 2, 4, 8]))
            .prop_map(|(at, number, width)| Mutation::Number { at, number, width }),
        1 => index().prop_map(Mutation::Cut),
        1 => (index(), prop::collection::vec(any::<u8>(), 1..100))
            .prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
    ]
}

fn frame(base: Base, who: &Identity, step: u64) -> Vec<u8> {
    match base {
        Base::Hello => encode_frame(Kind::Hello, &who.hello()),
        Base::Join => {
            let share = |(name, dtype, size): (&str, _, _)| FieldShare { name: name.into(), dtype, size };
            encode_frame(Kind::Join, &Join { fields: FIELDS.map(share).into() })
        }
        Base::Data => {
            let (_, dtype, size) = FIELDS[0];
            let body = bytes_of(key(who.simulation, 0, step), 0, dtype, 0, size);
            let header = Header {
                dtype: Some(dtype),
                simulation: who.simulation,
                time_step: step,
                element_count: size,
                ..Header::control(Kind::Data, body.len() as u64)
            };
            [&header.encode()[..], &body].concat()
        }
        Base::Finalize => {
            let header =
                Header { simulation: who.simulation, time_step: step, ..Header::control(Kind::Finalize, 0) };
            header.encode().to_vec()
        }
    }
}

fn mutate(frame: &mut Vec<u8>, mutation: &Mutation) {
    match mutation {
        Mutation::Flip { at, bit } => {
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
        }
        &Mutation::Number { at, number, width } => {
            let width = width.min(HEADER_SIZE - 4 - at);
            frame[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            let checksum = crc32c::crc32c(&frame[..HEADER_SIZE - 4]);
            frame[HEADER_SIZE - 4..HEADER_SIZE].copy_from_slice(&checksum.to_le_bytes());
        }
        Mutation::Cut(at) => frame.truncate(at.index(frame.len())),
        Mutation::Insert { at, bytes } => {
            let at = at.index(frame.len());
            frame.splice(at..at, bytes.iter().copied());
        }
    }
}

fn reach(study: &Study, stage: Stage, who: &Identity) -> TcpStream {
    match stage {
        Stage::Connected => open(study.session.address()),
        Stage::Accepted => study.connect(who.clone()).stream,
        Stage::Welcomed => study.joined(who.clone()).stream,
    }
}

/// Says that nothing more comes, and waits until the server has closed too.
fn finish(mut stream: TcpStream) {
    let gone = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::NotConnected];
    for result in [stream.shutdown(Shutdown::Write), stream.read_to_end(&mut Vec::new()).map(|_| ())] {
        assert!(result.as_ref().err().is_none_or(|error| gone.contains(&error.kind())), "{result:?}");
    }
}

fn strike() -> impl Strategy<Value = (Stage, Base, Vec<Mutation>)> {
    let stage = prop::sample::select(vec![Stage::Connected, Stage::Accepted, Stage::Welcomed]);
    let base = prop::sample::select(vec![
        Base::Hello,
        Base::Join,
        Base::Data,
        Base::Data,
        Base::Data,
        Base::Finalize,
    ]);
    (stage, base, prop::collection::vec(mutation(), 1..3))
}

/// Strikes of one study, each by an attempt of its own; long, a hundred times as many studies.
fn cases() -> u32 {
    if std::env::var_os("MELISSA_LONG").is_some_and(|value| value == "1") { 2000 } else { 20 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn mutated_frames_at_any_stage_harm_nobody_else(strikes in prop::collection::vec(strike(), 20)) {
        let planned = strikes.len() as u32 + 1;
        let study = Study::start(SessionConfig { nb_time_steps: Some(100), ..config(planned) }, fifo(3, 2));
        study.register(0, 1, 0);
        let mut honest: Client = study.joined(Identity::of(0));
        for (simulation, (stage, base, mutations)) in (1..).zip(&strikes) {
            study.register(simulation, 1, 0);
            let who = Identity::of(simulation);
            let mut stream = reach(&study, *stage, &who);
            let mut bytes = frame(*base, &who, 0);
            for mutation in mutations {
                if bytes.len() >= HEADER_SIZE {
                    mutate(&mut bytes, mutation);
                }
            }
            // A server that has seen enough may have closed.
            let _ = stream.write_all(&bytes);
            finish(stream);
            let step = u64::from(simulation) - 1;
            prop_assert!(send_step(&mut honest, 0, step));
            prop_assert_eq!(study.get(), Some(key(0, 0, step)));
            eventually("the peer is gone", || {
                let counters = study.session.counters();
                (counters.connections, counters.handshakes_pending) == (1, 0)
            });
        }
        let slots: Vec<_> = std::iter::from_fn(|| study.buffer.take_slot()).collect();
        prop_assert_eq!(slots.len(), study.buffer.slot_counts().total(), "a slot is lost");
        drop(slots);
        let sums = study.session.ledger_sums();
        prop_assert_eq!(sums.complete, strikes.len() as u64);
        prop_assert!(sums.declared >= sums.complete && sums.trained == 0);
        let texts = study.refusals();
        prop_assert!(texts.iter().all(|text| !text.chars().any(char::is_control)), "{:?}", texts);
        honest.finalize(strikes.len() as u64).unwrap();
    }
}
