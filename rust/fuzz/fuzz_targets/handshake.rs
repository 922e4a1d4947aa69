//! Any bytes are a message that comes back as it was when it is written and read again, or an error of bounded length.
//!
//! The first byte of an input chooses the kind, the rest is the payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use melissa_core::wire::distribution::Distribution;
use melissa_core::wire::handshake::{
    Accepted, Challenge, Hello, Join, MAX_NAME_BYTES, Message, Proof, Refused, Welcome, encode_frame, parse,
};
use melissa_core::wire::header::{HEADER_SIZE, Header};

/// The message, if the payload is one.
fn check<T: Message>(payload: &[u8]) -> Option<T> {
    let message: T = match parse(payload) {
        Ok(message) => message,
        Err(error) => {
            // What a peer sent may be quoted, at most with every byte written as an escape.
            let text = error.to_string();
            assert!(text.len() <= 300 + 10 * payload.len(), "{} bytes of text", text.len());
            return None;
        }
    };
    let frame = encode_frame(T::KIND, &message);
    let (header, written) = frame.split_first_chunk::<HEADER_SIZE>().expect("a frame has a header");
    // Escapes and digits may grow, so that a message near the limit can be too long when it is written anew.
    if let Ok(header) = Header::parse(header) {
        assert_eq!((header.kind, header.payload_len()), (T::KIND, written.len()));
        let again: T = parse(written).expect("what was accepted once is accepted again");
        assert_eq!(serde_json::to_vec(&again).expect("it has a JSON form"), written);
    } else {
        assert!(Some(written.len() as u64) > T::KIND.payload_limit(), "{} bytes", written.len());
    }
    Some(message)
}

fn one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn name(text: &str) {
    one_line(text);
    assert!((1..=MAX_NAME_BYTES).contains(&text.len()));
}

/// Whatever a server says of its ranks and of what is complete, every time step has one server rank, and one number there.
fn has_one_rank_for_each_step(welcome: &Welcome, simulation: u32) {
    let nb_ranks = welcome.servers.len() as u32;
    let Some(distribution) = Distribution::from_name(&welcome.distribution).filter(|_| nb_ranks > 0) else {
        return;
    };
    for step in welcome.complete.iter().flat_map(|&(first, last)| [first, last]) {
        let owner = distribution.rank_of(simulation, step, nb_ranks);
        assert!(owner < nb_ranks);
        for rank in [owner, (owner + 1) % nb_ranks] {
            let steps = distribution.steps_of(simulation, rank, nb_ranks);
            let number = (rank == owner).then(|| steps.below(step));
            assert_eq!(steps.index(step), number, "step {step} on rank {rank} of {nb_ranks}");
            assert!(number.is_none_or(|number| steps.at(number) == step));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, payload)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => {
            if let Some(hello) = check::<Hello>(payload) {
                assert!(hello.rank < hello.size);
                [&hello.software, &hello.role, &hello.host].into_iter().for_each(|text| one_line(text));
            }
        }
        1 => drop(check::<Challenge>(payload).map(|challenge| one_line(&challenge.software))),
        2 => drop(check::<Proof>(payload)),
        3 => drop(check::<Accepted>(payload)),
        4 => {
            if let Some(join) = check::<Join>(payload) {
                assert!(!join.fields.is_empty());
                join.fields.iter().for_each(|field| name(&field.name));
            }
        }
        5 => {
            if let Some(welcome) = check::<Welcome>(payload) {
                welcome.fields.iter().for_each(|field| name(&field.name));
                assert!(welcome.fields.iter().all(|field| field.offset <= field.size));
                assert!(welcome.complete.iter().all(|(first, last)| first <= last));
                assert!(welcome.complete.windows(2).all(|pair| pair[0].1 < pair[1].0));
                has_one_rank_for_each_step(&welcome, crc32c::crc32c(payload));
            }
        }
        _ => drop(check::<Refused>(payload)),
    }
});
