//! The JSON payloads of the control frames, from `Hello` to `Refused`.
//!
//! Keys that this version does not know are ignored, so that a later one can add some; everything else is checked
//! here, but for what only the study knows (its epoch, its simulations, its schema).

use super::header::{Header, Kind};
use super::hex::HexError;
use crate::schema::Dtype;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Deepest nesting of lists and objects in a payload; the messages of this version need three.
pub const MAX_DEPTH: usize = 8;
/// Longest name of a field, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// The codes of [`Refused`].
pub mod code {
    /// Another version, a message out of order, or a payload that breaks a rule.
    pub const PROTOCOL: &str = "protocol";
    /// The study was restarted since this client was submitted.
    pub const EPOCH: &str = "epoch";
    /// The client's proof is wrong.
    pub const KEY: &str = "key";
    /// A newer attempt of this simulation is known.
    pub const ATTEMPT: &str = "attempt";
    /// The simulation is unknown.
    pub const SIMULATION: &str = "simulation";
    /// A field is unknown, missing or declared twice.
    pub const FIELD: &str = "field";
    /// A field has another size than the study's schema says.
    pub const SIZE: &str = "size";
    /// A field has a dtype that cannot become the study's.
    pub const DTYPE: &str = "dtype";
    /// The slab does not fit in memory.
    pub const MEMORY: &str = "memory";
    /// The simulation is finished or given up already.
    pub const FINISHED: &str = "finished";
    /// The study is being stopped.
    pub const STOPPED: &str = "stopped";
    /// Too many handshakes are pending.
    pub const BUSY: &str = "busy";
    /// A time step came twice, out of order, or beyond the study's number of steps.
    pub const STEP: &str = "step";
    /// A header or a payload is damaged or does not fit.
    pub const FRAME: &str = "frame";

    pub const ALL: [&str; 14] = [
        PROTOCOL, EPOCH, KEY, ATTEMPT, SIMULATION, FIELD, SIZE, DTYPE, MEMORY, FINISHED, STOPPED, BUSY, STEP,
        FRAME,
    ];
}

/// Why a payload is not the message that its kind promises.
#[derive(Debug, Error)]
pub enum HandshakeError {
    #[error("the payload of {kind} has at most {limit} bytes, and {came} came")]
    TooLarge { kind: Kind, came: usize, limit: u64 },
    #[error("the payload of {kind} is not UTF-8 from byte {position} on")]
    NotUtf8 { kind: Kind, position: usize },
    #[error("the payload of {kind} nests lists and objects deeper than {MAX_DEPTH}")]
    TooDeep { kind: Kind },
    #[error("the payload of {kind} is no JSON object")]
    NoObject { kind: Kind },
    #[error("the payload of {kind} is not the JSON object that this kind has: {source}")]
    Json { kind: Kind, source: serde_json::Error },
    #[error("{kind}: {rule}, and {came} came")]
    Value { kind: Kind, rule: &'static str, came: String },
}

/// A message that is the JSON payload of one kind of frame.
pub trait Message: Serialize + DeserializeOwned {
    const KIND: Kind;

    /// The rules that the types of the fields do not say.
    fn check(&self) -> Result<(), HandshakeError> {
        Ok(())
    }
}

/// Client to server, first: who calls.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    /// Name and version of the client's software, for the log.
    pub software: String,
    pub role: String,
    #[serde(with = "hex_32")]
    pub nonce: [u8; 32],
    pub study_epoch: u64,
    pub simulation: u32,
    pub attempt: u32,
    pub rank: u32,
    /// Ranks of this client.
    pub size: u32,
    pub host: String,
    pub pid: u32,
}

/// Server to client: the server's nonce and its proof.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Challenge {
    pub protocol: u32,
    pub software: String,
    #[serde(with = "hex_32")]
    pub nonce: [u8; 32],
    #[serde(with = "hex_32")]
    pub proof: [u8; 32],
}

/// Client to server: the client's proof.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proof {
    #[serde(with = "hex_32")]
    pub proof: [u8; 32],
}

/// Server to client: the proof holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Accepted {}

/// A rank's share of one field.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FieldShare {
    pub name: String,
    /// What the solver hands over.
    #[serde(with = "dtype_name")]
    pub dtype: Dtype,
    /// Elements of this rank.
    pub size: u64,
}

/// Client to server, at the first send: the fields of this solver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    pub fields: Vec<FieldShare>,
}

/// Where a rank's share of one field belongs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FieldLayout {
    pub name: String,
    /// What data frames call this field.
    pub index: u32,
    /// Wanted on the wire.
    #[serde(with = "dtype_name")]
    pub dtype: Dtype,
    /// Elements of the whole domain.
    pub size: u64,
    /// First element of this rank.
    pub offset: u64,
}

/// Server to client: all ranks have joined, data may come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    pub fields: Vec<FieldLayout>,
    /// Addresses (`host:port`) of all server ranks, rank 0 first.
    pub servers: Vec<String>,
    /// Which server rank gets which time step.
    pub distribution: String,
    /// Time steps (first, last) that the server has already; ascending, apart from one another.
    pub complete: Vec<(u64, u64)>,
    /// Whether data frames shall carry the checksum of their payload.
    pub payload_crc: bool,
}

/// Server to client, at any time: this connection is over, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// One of [`code`]; a client treats an unknown one like any other.
    pub code: String,
    pub message: String,
}

impl Message for Hello {
    const KIND: Kind = Kind::Hello;

    fn check(&self) -> Result<(), HandshakeError> {
        printable(Self::KIND, "software", &self.software)?;
        printable(Self::KIND, "role", &self.role)?;
        printable(Self::KIND, "host", &self.host)?;
        if self.rank >= self.size {
            let came = format!("rank {} of {}", self.rank, self.size);
            return Err(HandshakeError::Value {
                kind: Self::KIND,
                rule: "ranks count from 0 to size - 1",
                came,
            });
        }
        Ok(())
    }
}

impl Message for Challenge {
    const KIND: Kind = Kind::Challenge;

    fn check(&self) -> Result<(), HandshakeError> {
        printable(Self::KIND, "software", &self.software)
    }
}

impl Message for Proof {
    const KIND: Kind = Kind::Proof;
}

impl Message for Accepted {
    const KIND: Kind = Kind::Accepted;
}

impl Message for Join {
    const KIND: Kind = Kind::Join;

    fn check(&self) -> Result<(), HandshakeError> {
        field_names(Self::KIND, self.fields.iter().map(|field| field.name.as_str()))
    }
}

impl Message for Welcome {
    const KIND: Kind = Kind::Welcome;

    fn check(&self) -> Result<(), HandshakeError> {
        let kind = Self::KIND;
        field_names(kind, self.fields.iter().map(|field| field.name.as_str()))?;
        if let Some(field) = self.fields.iter().find(|field| field.offset > field.size) {
            let came = format!("offset {} of {} elements for \"{}\"", field.offset, field.size, field.name);
            return Err(HandshakeError::Value { kind, rule: "a rank's share starts within its field", came });
        }
        let mut next = Some(0);
        for &(first, last) in &self.complete {
            if next.is_none_or(|next| first < next) || last < first {
                let came = format!("{first} to {last}");
                return Err(HandshakeError::Value { kind, rule: "ranges of complete steps ascend", came });
            }
            next = last.checked_add(1);
        }
        Ok(())
    }
}

impl Message for Refused {
    const KIND: Kind = Kind::Refused;
}

/// A text of a peer goes into logs: nothing in it may pretend to be another line.
fn printable(kind: Kind, name: &str, text: &str) -> Result<(), HandshakeError> {
    if text.chars().any(char::is_control) {
        let rule = "texts about a peer have no control characters";
        return Err(HandshakeError::Value { kind, rule, came: format!("{name} {text:?}") });
    }
    Ok(())
}

fn field_names<'a>(kind: Kind, names: impl Iterator<Item = &'a str> + Clone) -> Result<(), HandshakeError> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        printable(kind, "field name", name)?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            let rule = "the name of a field has 1 to 256 bytes";
            return Err(HandshakeError::Value { kind, rule, came: format!("{} bytes", name.len()) });
        }
        if !seen.insert(name) {
            let rule = "every field stands once";
            return Err(HandshakeError::Value { kind, rule, came: format!("\"{name}\" twice") });
        }
    }
    if seen.is_empty() {
        return Err(HandshakeError::Value { kind, rule: "there is one field or more", came: "none".into() });
    }
    Ok(())
}

/// Header and JSON of one message.
pub fn encode_frame<T: Message>(kind: Kind, message: &T) -> Vec<u8> {
    debug_assert_eq!(kind, T::KIND);
    // Objects of texts, integers, truth values and lists of them always have a JSON form.
    let payload = serde_json::to_vec(message)
        .unwrap_or_else(|error| unreachable!("a {kind} message has no JSON form: {error}"));
    let mut frame = Header::control(kind, payload.len() as u64).encode().to_vec();
    frame.extend_from_slice(&payload);
    frame
}

/// The message that a payload is, or the first rule that it breaks.
pub fn parse<T: Message>(payload: &[u8]) -> Result<T, HandshakeError> {
    let kind = T::KIND;
    if let Some(limit) = kind.payload_limit()
        && payload.len() as u64 > limit
    {
        return Err(HandshakeError::TooLarge { kind, came: payload.len(), limit });
    }
    let text = std::str::from_utf8(payload)
        .map_err(|error| HandshakeError::NotUtf8 { kind, position: error.valid_up_to() })?;
    if depth(text) > MAX_DEPTH {
        return Err(HandshakeError::TooDeep { kind });
    }
    // A list of the values alone would be taken for the object otherwise.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(HandshakeError::NoObject { kind });
    }
    let message: T = serde_json::from_str(text).map_err(|source| HandshakeError::Json { kind, source })?;
    message.check()?;
    Ok(message)
}

/// Deepest nesting of a text, were it JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// 32 bytes as 64 hexadecimal digits.
mod hex_32 {
    use super::HexError;
    use crate::wire::hex;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode_32(&text)
            .map_err(|error: HexError| D::Error::custom(format!("a nonce or a proof: {error}")))
    }
}

/// A dtype as its NumPy name.
mod dtype_name {
    use crate::schema::Dtype;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(dtype: &Dtype, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(dtype.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
        let name = String::deserialize(deserializer)?;
        Dtype::from_name(&name).ok_or_else(|| {
            let known = Dtype::ALL.map(Dtype::name).join(", ");
            D::Error::custom(format!("dtype \"{name}\" is none of {known}"))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::header::{HEADER_SIZE, MAX_HANDSHAKE_PAYLOAD};
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            protocol: 1,
            software: "melissa-client 0.1.0".into(),
            role: "client".into(),
            nonce: [0xab; 32],
            study_epoch: 1,
            simulation: 12,
            attempt: 2,
            rank: 0,
            size: 4,
            host: "node-17".into(),
            pid: 4242,
        }
    }

    fn welcome() -> Welcome {
        let field = |name: &str, index, offset| FieldLayout {
            name: name.into(),
            index,
            dtype: Dtype::F32,
            size: 100,
            offset,
        };
        Welcome {
            fields: vec![field("temperature", 0, 0), field("pressure", 1, 100)],
            servers: vec!["node-1:4000".into()],
            distribution: "round_robin".into(),
            complete: vec![(0, 4), (6, 6)],
            payload_crc: false,
        }
    }

    fn comes_back<T: Message + PartialEq + std::fmt::Debug>(message: &T) {
        let frame = encode_frame(T::KIND, message);
        let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().unwrap();
        let header = Header::parse(header).unwrap();
        assert_eq!((header.kind, header.payload_len()), (T::KIND, payload.len()));
        assert_eq!(&parse::<T>(payload).unwrap(), message);
    }

    /// The text of the error that a payload gives.
    fn refused<T: Message + std::fmt::Debug>(payload: impl AsRef<[u8]>) -> String {
        parse::<T>(payload.as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn every_message_comes_back_as_it_was() {
        comes_back(&hello());
        comes_back(&Challenge { protocol: 1, software: "melissa".into(), nonce: [1; 32], proof: [2; 32] });
        comes_back(&Proof { proof: [3; 32] });
        comes_back(&Accepted {});
        let share = FieldShare { name: "température".into(), dtype: Dtype::F64, size: 0 };
        comes_back(&Join { fields: vec![share] });
        comes_back(&welcome());
        comes_back(&Refused { code: code::SIZE.into(), message: "a \"text\"\nof two lines".into() });
    }

    #[test]
    fn dtypes_and_nonces_are_texts_that_other_languages_can_read() {
        let frame = encode_frame(Kind::Hello, &hello());
        let text = std::str::from_utf8(&frame[HEADER_SIZE..]).unwrap();
        assert!(text.contains(&format!("\"nonce\":\"{}\"", "ab".repeat(32))), "{text}");
        let frame = encode_frame(Kind::Welcome, &welcome());
        let text = std::str::from_utf8(&frame[HEADER_SIZE..]).unwrap();
        assert!(
            text.contains("\"dtype\":\"float32\"") && text.contains("\"complete\":[[0,4],[6,6]]"),
            "{text}"
        );
    }

    #[test]
    fn unknown_keys_are_ignored_and_missing_ones_named() {
        let proof = "00".repeat(32);
        assert!(
            parse::<Proof>(format!("{{\"proof\":\"{proof}\",\"later\":{{\"a\":[1]}}}}").as_bytes()).is_ok()
        );
        assert!(refused::<Proof>("{}").contains("missing field `proof`"));
        assert!(
            refused::<Proof>(format!("{{\"proof\":\"{proof}\",\"proof\":\"{proof}\"}}"))
                .contains("duplicate")
        );
    }

    #[test]
    fn a_payload_longer_than_its_kind_allows_is_not_looked_at() {
        let long = vec![b' '; MAX_HANDSHAKE_PAYLOAD as usize + 1];
        assert!(matches!(
            parse::<Proof>(&long),
            Err(HandshakeError::TooLarge { kind: Kind::Proof, came: 4033, .. })
        ));
    }

    #[test]
    fn deep_nesting_is_refused_before_it_is_parsed() {
        let deep = format!("{{\"proof\":{}", "[".repeat(4000));
        assert!(matches!(
            parse::<Proof>(deep.as_bytes()),
            Err(HandshakeError::TooDeep { kind: Kind::Proof })
        ));
        let text = format!("{{\"code\":\"{}\\\"[[\",\"message\":\"\"}}", "[".repeat(100));
        assert!(parse::<Refused>(text.as_bytes()).is_ok(), "brackets in a text are no nesting");
    }

    #[test]
    fn invalid_utf8_is_told_by_its_position() {
        let error = parse::<Refused>(b"{\"code\":\"\xff\"}").unwrap_err();
        assert!(matches!(error, HandshakeError::NotUtf8 { kind: Kind::Refused, position: 9 }));
    }

    #[test]
    fn what_is_not_json_or_not_an_object_is_refused() {
        for payload in ["", "null", "[]", "3", "\u{0}"] {
            let error = parse::<Accepted>(payload.as_bytes()).unwrap_err();
            assert!(matches!(error, HandshakeError::NoObject { .. }), "{payload}: {error}");
        }
        for payload in ["{", "{} {}", "{]", "{}\u{0}"] {
            let error = parse::<Accepted>(payload.as_bytes()).unwrap_err();
            assert!(matches!(error, HandshakeError::Json { .. }), "{payload}: {error}");
        }
    }

    #[test]
    fn nonces_and_proofs_of_another_length_are_refused_with_both_lengths() {
        let text = refused::<Proof>("{\"proof\":\"abcd\"}");
        assert!(text.contains("expected 64 hexadecimal digits, and 4 characters came"), "{text}");
        let text = refused::<Proof>(format!("{{\"proof\":\"{}\"}}", "zz".repeat(32)));
        assert!(text.contains("character 0 is none"), "{text}");
    }

    #[test]
    fn an_unknown_dtype_is_refused_with_the_known_ones() {
        let text = refused::<Join>("{\"fields\":[{\"name\":\"a\",\"dtype\":\"float16\",\"size\":3}]}");
        assert!(text.contains("\"float16\" is none of float32, float64, int32, int64, uint8"), "{text}");
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        for size in ["-1", "1.5", "18446744073709551616", "1e3", "\"3\""] {
            let payload =
                format!("{{\"fields\":[{{\"name\":\"a\",\"dtype\":\"float32\",\"size\":{size}}}]}}");
            assert!(matches!(parse::<Join>(payload.as_bytes()), Err(HandshakeError::Json { .. })), "{size}");
        }
    }

    #[test]
    fn a_hello_keeps_its_rank_below_its_size_and_its_texts_on_one_line() {
        let frame = encode_frame(Kind::Hello, &Hello { rank: 4, ..hello() });
        assert!(refused::<Hello>(&frame[HEADER_SIZE..]).contains("rank 4 of 4 came"));
        let frame = encode_frame(Kind::Hello, &Hello { host: "a\nERROR all is lost".into(), ..hello() });
        assert!(refused::<Hello>(&frame[HEADER_SIZE..]).contains("no control characters"));
    }

    #[test]
    fn fields_have_names_and_stand_once() {
        let share = |name: &str| FieldShare { name: name.into(), dtype: Dtype::F32, size: 1 };
        for (fields, expected) in [
            (vec![], "one field or more"),
            (vec![share("a"), share("a")], "\"a\" twice"),
            (vec![share("")], "1 to 256 bytes, and 0 bytes came"),
            (vec![share(&"a".repeat(257))], "257 bytes"),
        ] {
            let frame = encode_frame(Kind::Join, &Join { fields });
            let text = refused::<Join>(&frame[HEADER_SIZE..]);
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn complete_steps_ascend_and_shares_start_within_their_field() {
        for complete in
            [vec![(3, 2)], vec![(0, 4), (4, 5)], vec![(5, 6), (0, 1)], vec![(0, u64::MAX), (1, 2)]]
        {
            let frame = encode_frame(Kind::Welcome, &Welcome { complete, ..welcome() });
            assert!(refused::<Welcome>(&frame[HEADER_SIZE..]).contains("ranges of complete steps ascend"));
        }
        let mut wrong = welcome();
        wrong.fields[1].offset = 101;
        let frame = encode_frame(Kind::Welcome, &wrong);
        assert!(
            refused::<Welcome>(&frame[HEADER_SIZE..]).contains("offset 101 of 100 elements for \"pressure\"")
        );
    }

    fn parses_all(payload: &[u8]) {
        let _ = parse::<Hello>(payload);
        let _ = parse::<Challenge>(payload);
        let _ = parse::<Proof>(payload);
        let _ = parse::<Accepted>(payload);
        let _ = parse::<Join>(payload);
        let _ = parse::<Welcome>(payload);
        let _ = parse::<Refused>(payload);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            parses_all(&payload);
        }

        #[test]
        fn no_change_of_a_valid_payload_makes_a_parser_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            for mut frame in [encode_frame(Kind::Hello, &hello()), encode_frame(Kind::Welcome, &welcome())] {
                let payload = &mut frame[HEADER_SIZE..];
                let at = at.index(payload.len());
                payload[at] = byte;
                parses_all(payload);
                parses_all(&payload[..at]);
            }
        }

        #[test]
        fn any_texts_come_back(host in "[^\\p{Cc}]{0,40}", code in "[a-z]{1,9}", message in "\\PC{0,200}") {
            comes_back(&Hello { host, ..hello() });
            comes_back(&Refused { code, message });
        }
    }
}
