//! Any 64 bytes are a header that keeps every rule of docs/protocol.md and is written as it came, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use melissa_core::wire::header::{HEADER_SIZE, Header, HeaderError, Kind};

/// An integer of the header, read by its offset in the table of the page.
fn number(bytes: &[u8; HEADER_SIZE], at: usize, width: usize) -> u64 {
    let mut value = [0; 8];
    value[..width].copy_from_slice(&bytes[at..at + width]);
    u64::from_le_bytes(value)
}

/// The rules of the page, written down a second time; the number of the first that is broken.
fn broken_rule(bytes: &[u8; HEADER_SIZE]) -> Option<u32> {
    let (kind, dtype, flags, crc) = (bytes[6], bytes[7], number(bytes, 20, 4), number(bytes, 56, 4));
    let (offset, count, length) = (number(bytes, 32, 8), number(bytes, 40, 8), number(bytes, 48, 8));
    let element = [0, 4, 8, 4, 8, 1].get(usize::from(dtype)).copied().unwrap_or(0u128);
    let longest = match kind {
        1..=4 => 4032,
        5 => 65_536,
        6 | 7 => 1_048_576,
        _ => 0,
    };
    let rules = [
        (1, &bytes[..4] == b"MLSA"),
        (2, number(bytes, 4, 2) == 1),
        (3, number(bytes, 60, 4) == u64::from(crc32c::crc32c(&bytes[..60]))),
        (4, (1..=11).contains(&kind)),
        (5, dtype <= 5),
        (6, flags <= 1),
        (7, flags == 1 || crc == 0),
        (8, kind != 8 || dtype != 0),
        (8, kind != 8 || offset.checked_add(count).is_some()),
        (8, kind != 8 || u128::from(length) == u128::from(count) * element),
        (9, kind == 8 || (dtype, flags, number(bytes, 16, 4), offset, count) == (0, 0, 0, 0, 0)),
        (9, kind == 8 || kind == 9 || number(bytes, 24, 8) == 0),
        (9, kind == 8 || length <= longest),
    ];
    rules.into_iter().find(|&(_, holds)| !holds).map(|(rule, _)| rule)
}

const fn rule_of(error: &HeaderError) -> u32 {
    match error {
        HeaderError::Magic { .. } => 1,
        HeaderError::Version { .. } => 2,
        HeaderError::Checksum { .. } => 3,
        HeaderError::Kind { .. } => 4,
        HeaderError::Dtype { .. } => 5,
        HeaderError::Flags { .. } => 6,
        HeaderError::Unused { kind: Kind::Data, .. } => 7,
        HeaderError::NoDtype | HeaderError::ElementRange { .. } | HeaderError::PayloadLength { .. } => 8,
        HeaderError::Unused { .. } | HeaderError::PayloadTooLarge { .. } => 9,
    }
}

fn check(bytes: &[u8; HEADER_SIZE]) {
    match Header::parse(bytes) {
        Ok(header) => {
            assert_eq!(broken_rule(bytes), None, "{header:?} was accepted");
            assert_eq!(&header.encode(), bytes, "{header:?} is written otherwise");
            assert_eq!(header.payload_len() as u64, header.payload_length);
        }
        Err(error) => {
            let rule = rule_of(&error);
            // A payload checksum without its flag on a control frame is reported like its other unused places.
            let expected =
                if rule == 9 && number(bytes, 20, 4) == 0 && number(bytes, 56, 4) != 0 { 7 } else { rule };
            assert_eq!(broken_rule(bytes), Some(expected), "{error}");
            assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some(header) = bytes.first_chunk::<HEADER_SIZE>() else { return };
    check(header);
    // Behind a right magic, version and checksum the other rules are reached.
    let mut sealed = *header;
    sealed[..6].copy_from_slice(b"MLSA\x01\x00");
    let checksum = crc32c::crc32c(&sealed[..60]);
    sealed[60..].copy_from_slice(&checksum.to_le_bytes());
    check(&sealed);
});
