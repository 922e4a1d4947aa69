//! The 64-byte header that starts every frame.

use crate::schema::Dtype;
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 64;
/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"MLSA";
/// The version of the header's layout.
pub const VERSION: u16 = 1;
/// Flag: `payload_crc` holds the CRC32C of the payload. Data frames only.
pub const FLAG_PAYLOAD_CRC: u32 = 1;

/// Largest payload of `Hello`, `Challenge`, `Proof` and `Accepted`: with its header, 4 KiB before anything is proved.
pub const MAX_HANDSHAKE_PAYLOAD: u64 = 4096 - HEADER_SIZE as u64;
/// Largest payload of `Join`.
pub const MAX_JOIN_PAYLOAD: u64 = 64 * 1024;
/// Largest payload of `Welcome` and of `Refused`.
pub const MAX_ANSWER_PAYLOAD: u64 = 1024 * 1024;

/// What a frame is. The discriminants are the codes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Challenge = 2,
    Proof = 3,
    Accepted = 4,
    Join = 5,
    Welcome = 6,
    Refused = 7,
    Data = 8,
    Finalize = 9,
    FinalizeAck = 10,
    Stop = 11,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Hello,
        Self::Challenge,
        Self::Proof,
        Self::Accepted,
        Self::Join,
        Self::Welcome,
        Self::Refused,
        Self::Data,
        Self::Finalize,
        Self::FinalizeAck,
        Self::Stop,
    ];

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == code)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::Challenge => "Challenge",
            Self::Proof => "Proof",
            Self::Accepted => "Accepted",
            Self::Join => "Join",
            Self::Welcome => "Welcome",
            Self::Refused => "Refused",
            Self::Data => "Data",
            Self::Finalize => "Finalize",
            Self::FinalizeAck => "FinalizeAck",
            Self::Stop => "Stop",
        }
    }

    /// Largest payload in bytes; `None` for data, which the schema of the study bounds.
    pub const fn payload_limit(self) -> Option<u64> {
        match self {
            Self::Hello | Self::Challenge | Self::Proof | Self::Accepted => Some(MAX_HANDSHAKE_PAYLOAD),
            Self::Join => Some(MAX_JOIN_PAYLOAD),
            Self::Welcome | Self::Refused => Some(MAX_ANSWER_PAYLOAD),
            Self::Finalize | Self::FinalizeAck | Self::Stop => Some(0),
            Self::Data => None,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The first rule of the header that its bytes break.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HeaderError {
    #[error(
        "a frame starts with the bytes \"MLSA\", and \"{}\" came: the peer speaks something else, or lost its place \
         in the stream",
        .came.escape_ascii()
    )]
    Magic { came: [u8; 4] },
    #[error(
        "the header has version {came}, and this side reads version {VERSION}: use one version of Melissa everywhere"
    )]
    Version { came: u16 },
    #[error("the header's checksum is {came:#010x}, and its bytes give {computed:#010x}: they were damaged")]
    Checksum { came: u32, computed: u32 },
    #[error("frame kind {came} is unknown: kinds are 1 (Hello) to 11 (Stop)")]
    Kind { came: u8 },
    #[error(
        "dtype code {came} is unknown: codes are 0 (none), 1 (float32), 2 (float64), 3 (int32), 4 (int64) and 5 (uint8)"
    )]
    Dtype { came: u8 },
    #[error("a Data frame names the dtype of its elements, and its code is 0 (none)")]
    NoDtype,
    #[error("flags {came:#x} hold unknown bits: bit 0 (payload checksum) is the only one")]
    Flags { came: u32 },
    #[error("a {kind} frame leaves the header's \"{name}\" zero, and it is {came}")]
    Unused { kind: Kind, name: &'static str, came: u64 },
    #[error("the payload of a {kind} frame has at most {limit} bytes, and the header announces {came}")]
    PayloadTooLarge { kind: Kind, came: u64, limit: u64 },
    #[error("{count} elements from offset {offset} on end beyond 2^64")]
    ElementRange { offset: u64, count: u64 },
    #[error("{count} elements of {dtype} are {count} x {} bytes, and the header announces a payload of {came} bytes",
        .dtype.size())]
    PayloadLength { dtype: Dtype, count: u64, came: u64 },
}

/// The bytes of a header as they lie in memory and on the wire.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U16,
    kind: u8,
    dtype: u8,
    simulation: U32,
    client_rank: U32,
    field: U32,
    flags: U32,
    time_step: U64,
    element_offset: U64,
    element_count: U64,
    payload_length: U64,
    payload_crc: U32,
    header_crc: U32,
}

/// A header whose bytes kept every rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    /// Of the payload's elements; data frames only.
    pub dtype: Option<Dtype>,
    pub simulation: u32,
    pub client_rank: u32,
    /// Index of the field in the schema, from `Welcome`; data frames only.
    pub field: u32,
    /// [`FLAG_PAYLOAD_CRC`] or nothing.
    pub flags: u32,
    /// Of a data frame, from 0; of `Finalize`, the number of time steps that this rank has sent.
    pub time_step: u64,
    /// First element of the payload in the field of the whole domain.
    pub element_offset: u64,
    pub element_count: u64,
    /// Bytes that follow the header.
    pub payload_length: u64,
    /// CRC32C of the payload, or 0 without [`FLAG_PAYLOAD_CRC`].
    pub payload_crc: u32,
}

impl Header {
    /// The header of a frame other than data: everything but kind and payload length is zero.
    pub const fn control(kind: Kind, payload_length: u64) -> Self {
        Self {
            kind,
            dtype: None,
            simulation: 0,
            client_rank: 0,
            field: 0,
            flags: 0,
            time_step: 0,
            element_offset: 0,
            element_count: 0,
            payload_length,
            payload_crc: 0,
        }
    }

    /// The bytes of this header, checksum included. It is not checked against the rules of [`Header::parse`].
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let raw = RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            kind: self.kind as u8,
            dtype: self.dtype.map_or(0, |dtype| dtype as u8),
            simulation: self.simulation.into(),
            client_rank: self.client_rank.into(),
            field: self.field.into(),
            flags: self.flags.into(),
            time_step: self.time_step.into(),
            element_offset: self.element_offset.into(),
            element_count: self.element_count.into(),
            payload_length: self.payload_length.into(),
            payload_crc: self.payload_crc.into(),
            header_crc: 0.into(),
        };
        let mut bytes: [u8; HEADER_SIZE] = zerocopy::transmute!(raw);
        let checksum = header_checksum(&bytes);
        bytes[HEADER_SIZE - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header that these bytes are, or the first rule that they break.
    ///
    /// Magic and version come first, as another version may keep its checksum elsewhere; nothing behind the
    /// checksum is looked at before it holds.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self, HeaderError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(HeaderError::Magic { came: raw.magic });
        }
        if raw.version.get() != VERSION {
            return Err(HeaderError::Version { came: raw.version.get() });
        }
        let computed = header_checksum(bytes);
        if raw.header_crc.get() != computed {
            return Err(HeaderError::Checksum { came: raw.header_crc.get(), computed });
        }
        let kind = Kind::from_code(raw.kind).ok_or(HeaderError::Kind { came: raw.kind })?;
        let dtype = match raw.dtype {
            0 => None,
            code => Some(Dtype::from_code(code).ok_or(HeaderError::Dtype { came: code })?),
        };
        let header = Self {
            kind,
            dtype,
            simulation: raw.simulation.get(),
            client_rank: raw.client_rank.get(),
            field: raw.field.get(),
            flags: raw.flags.get(),
            time_step: raw.time_step.get(),
            element_offset: raw.element_offset.get(),
            element_count: raw.element_count.get(),
            payload_length: raw.payload_length.get(),
            payload_crc: raw.payload_crc.get(),
        };
        if header.flags & !FLAG_PAYLOAD_CRC != 0 {
            return Err(HeaderError::Flags { came: header.flags });
        }
        if header.flags & FLAG_PAYLOAD_CRC == 0 && header.payload_crc != 0 {
            let came = header.payload_crc.into();
            return Err(HeaderError::Unused { kind, name: "payload checksum (its flag is not set)", came });
        }
        match kind.payload_limit() {
            None => header.check_data()?,
            Some(limit) => header.check_control(limit)?,
        }
        Ok(header)
    }

    fn check_data(&self) -> Result<(), HeaderError> {
        let dtype = self.dtype.ok_or(HeaderError::NoDtype)?;
        let (offset, count) = (self.element_offset, self.element_count);
        if offset.checked_add(count).is_none() {
            return Err(HeaderError::ElementRange { offset, count });
        }
        if count.checked_mul(dtype.size() as u64) != Some(self.payload_length) {
            return Err(HeaderError::PayloadLength { dtype, count, came: self.payload_length });
        }
        Ok(())
    }

    fn check_control(&self, limit: u64) -> Result<(), HeaderError> {
        let kind = self.kind;
        let time_step = if kind == Kind::Finalize { 0 } else { self.time_step };
        let unused = [
            ("dtype", self.dtype.map_or(0, |dtype| dtype as u64)),
            ("field index", self.field.into()),
            ("flags", self.flags.into()),
            ("time step", time_step),
            ("element offset", self.element_offset),
            ("element count", self.element_count),
        ];
        if let Some((name, came)) = unused.into_iter().find(|&(_, value)| value != 0) {
            return Err(HeaderError::Unused { kind, name, came });
        }
        if self.payload_length > limit {
            return Err(HeaderError::PayloadTooLarge { kind, came: self.payload_length, limit });
        }
        Ok(())
    }

    /// The payload's length as a size in memory, for a frame whose kind has a limit or whose range was checked.
    pub fn payload_len(&self) -> usize {
        usize::try_from(self.payload_length).unwrap_or(usize::MAX)
    }
}

fn header_checksum(bytes: &[u8; HEADER_SIZE]) -> u32 {
    crc32c::crc32c(&bytes[..HEADER_SIZE - 4])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data() -> Header {
        Header {
            kind: Kind::Data,
            dtype: Some(Dtype::F64),
            simulation: 7,
            client_rank: 3,
            field: 1,
            flags: FLAG_PAYLOAD_CRC,
            time_step: 41,
            element_offset: 1000,
            element_count: 250,
            payload_length: 2000,
            payload_crc: 0xdead_beef,
        }
    }

    /// The bytes of a data header with one place overwritten and the checksum made right again.
    fn patched(offset: usize, bytes: &[u8]) -> [u8; HEADER_SIZE] {
        resealed(data().encode(), offset, bytes)
    }

    fn resealed(mut header: [u8; HEADER_SIZE], offset: usize, bytes: &[u8]) -> [u8; HEADER_SIZE] {
        header[offset..offset + bytes.len()].copy_from_slice(bytes);
        let checksum = header_checksum(&header);
        header[60..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    #[test]
    fn every_field_lies_at_its_documented_offset() {
        let bytes = data().encode();
        assert_eq!(bytes[0..4], *b"MLSA");
        assert_eq!(bytes[4..6], 1u16.to_le_bytes());
        assert_eq!(bytes[6..8], [8, 2]);
        assert_eq!(bytes[8..12], 7u32.to_le_bytes());
        assert_eq!(bytes[12..16], 3u32.to_le_bytes());
        assert_eq!(bytes[16..20], 1u32.to_le_bytes());
        assert_eq!(bytes[20..24], 1u32.to_le_bytes());
        assert_eq!(bytes[24..32], 41u64.to_le_bytes());
        assert_eq!(bytes[32..40], 1000u64.to_le_bytes());
        assert_eq!(bytes[40..48], 250u64.to_le_bytes());
        assert_eq!(bytes[48..56], 2000u64.to_le_bytes());
        assert_eq!(bytes[56..60], 0xdead_beefu32.to_le_bytes());
        assert_eq!(bytes[60..64], crc32c::crc32c(&bytes[..60]).to_le_bytes());
    }

    #[test]
    fn another_magic_is_shown_and_comes_before_everything_else() {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..4].copy_from_slice(b"GET ");
        assert_eq!(Header::parse(&bytes), Err(HeaderError::Magic { came: *b"GET " }));
        assert!(Header::parse(&bytes).unwrap_err().to_string().contains("\"GET \""));
    }

    #[test]
    fn another_version_is_told_before_its_checksum_is_looked_at() {
        let mut bytes = data().encode();
        bytes[4] = 2;
        assert_eq!(Header::parse(&bytes), Err(HeaderError::Version { came: 2 }));
    }

    #[test]
    fn a_flipped_bit_breaks_the_checksum_wherever_it_is() {
        let good = data().encode();
        for byte in 6..HEADER_SIZE {
            for bit in 0..8 {
                let mut bytes = good;
                bytes[byte] ^= 1 << bit;
                assert!(matches!(Header::parse(&bytes), Err(HeaderError::Checksum { .. })), "byte {byte}");
            }
        }
    }

    #[test]
    fn each_broken_rule_of_a_data_frame_has_its_own_error() {
        assert_eq!(Header::parse(&patched(6, &[0])), Err(HeaderError::Kind { came: 0 }));
        assert_eq!(Header::parse(&patched(6, &[12])), Err(HeaderError::Kind { came: 12 }));
        assert_eq!(Header::parse(&patched(7, &[6])), Err(HeaderError::Dtype { came: 6 }));
        assert_eq!(Header::parse(&patched(7, &[0])), Err(HeaderError::NoDtype));
        assert_eq!(Header::parse(&patched(20, &[3])), Err(HeaderError::Flags { came: 3 }));
        assert!(matches!(
            Header::parse(&patched(20, &[0])),
            Err(HeaderError::Unused { kind: Kind::Data, came: 0xdead_beef, .. })
        ));
        assert_eq!(
            Header::parse(&patched(32, &u64::MAX.to_le_bytes())),
            Err(HeaderError::ElementRange { offset: u64::MAX, count: 250 })
        );
        assert_eq!(
            Header::parse(&patched(48, &1999u64.to_le_bytes())),
            Err(HeaderError::PayloadLength { dtype: Dtype::F64, count: 250, came: 1999 })
        );
        // A count whose bytes wrap around to the announced length.
        let wrapping = resealed(patched(40, &(1u64 << 61).to_le_bytes()), 48, &0u64.to_le_bytes());
        assert_eq!(
            Header::parse(&wrapping),
            Err(HeaderError::PayloadLength { dtype: Dtype::F64, count: 1 << 61, came: 0 })
        );
    }

    #[test]
    fn control_frames_leave_what_belongs_to_data_zero() {
        for (offset, name) in [
            (7, "dtype"),
            (16, "field index"),
            (20, "flags"),
            (24, "time step"),
            (32, "element offset"),
            (40, "element count"),
        ] {
            let bytes = resealed(Header::control(Kind::Hello, 10).encode(), offset, &[1]);
            assert_eq!(Header::parse(&bytes), Err(HeaderError::Unused { kind: Kind::Hello, name, came: 1 }));
        }
        let finalize = Header { time_step: 100, ..Header::control(Kind::Finalize, 0) };
        assert_eq!(Header::parse(&finalize.encode()), Ok(finalize));
    }

    #[test]
    fn every_kind_but_data_bounds_its_payload() {
        for kind in Kind::ALL {
            let Some(limit) = kind.payload_limit() else {
                assert_eq!(kind, Kind::Data);
                continue;
            };
            let longest = Header::control(kind, limit);
            assert_eq!(Header::parse(&longest.encode()), Ok(longest));
            let longer = Header::control(kind, limit + 1);
            assert_eq!(
                Header::parse(&longer.encode()),
                Err(HeaderError::PayloadTooLarge { kind, came: limit + 1, limit })
            );
        }
    }

    prop_compose! {
        fn any_data_header()(
            dtype in proptest::sample::select(&Dtype::ALL[..]),
            (simulation, client_rank, field) in any::<(u32, u32, u32)>(),
            checksum in any::<Option<u32>>(),
            time_step in any::<u64>(),
            element_offset in 0..u64::MAX / 2,
            element_count in 0..u64::MAX / 16,
        ) -> Header {
            Header {
                kind: Kind::Data,
                dtype: Some(dtype),
                simulation,
                client_rank,
                field,
                flags: if checksum.is_some() { FLAG_PAYLOAD_CRC } else { 0 },
                time_step,
                element_offset,
                element_count,
                payload_length: element_count * dtype.size() as u64,
                payload_crc: checksum.unwrap_or(0),
            }
        }
    }

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(header in any_data_header()) {
            prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
        }

        #[test]
        fn any_64_bytes_are_a_header_or_an_error(bytes in proptest::array::uniform32(any::<u8>()),
                                                 more in proptest::array::uniform32(any::<u8>())) {
            let mut all = [0; HEADER_SIZE];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            prop_assert!(Header::parse(&all).is_err());
            // Behind a right magic, version and checksum the other rules are reached.
            all[..6].copy_from_slice(b"MLSA\x01\x00");
            all[6] %= 16;
            let sealed = resealed(all, 0, b"MLSA");
            if let Ok(header) = Header::parse(&sealed) {
                prop_assert_eq!(header.encode(), sealed);
            }
        }
    }
}
