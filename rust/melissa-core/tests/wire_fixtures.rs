//! The golden bytes under `tests/data/wire`: one whole example session, proofs with the bytes that they sign, and
//! frames that must be refused.
//!
//! Clients in other languages are tested against the same files. They are made here, from values that are written
//! out below, and checked byte by byte; `MELISSA_WRITE_WIRE_FIXTURES=1 cargo test -p melissa-core --test
//! wire_fixtures` writes them anew, which only a change of the protocol justifies.
#![allow(clippy::unwrap_used, clippy::panic)]

use hmac::{Hmac, KeyInit, Mac};
use melissa_core::schema::Dtype;
use melissa_core::wire::auth::{Side, StudyKey, Transcript, prove, verify};
use melissa_core::wire::handshake::{
    self, Accepted, Challenge, FieldLayout, FieldShare, HandshakeError, Hello, Join, Message, Proof, Refused,
    Welcome, encode_frame,
};
use melissa_core::wire::header::{FLAG_PAYLOAD_CRC, HEADER_SIZE, Header, Kind};
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Relative path of each file to its bytes.
type Files = BTreeMap<String, Vec<u8>>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/wire")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(value).unwrap().into_bytes();
    text.push(b'\n');
    text
}

// The example session: rank 1 of a client of two ranks, two fields, of which the server has steps 0 and 1 already.

const KEY: [u8; 32] = *b"an example key, thirty-two bytes";

fn hello() -> Hello {
    Hello {
        protocol: 1,
        software: "melissa-client 0.1.0".into(),
        role: "client".into(),
        nonce: std::array::from_fn(|i| i as u8),
        study_epoch: 1,
        simulation: 12,
        attempt: 2,
        rank: 1,
        size: 2,
        host: "node-17".into(),
        pid: 4242,
    }
}

const SERVER_NONCE: [u8; 32] = [0xa5; 32];

fn transcript(hello: &Hello) -> Transcript<'_> {
    Transcript {
        protocol: hello.protocol,
        role: &hello.role,
        client_nonce: hello.nonce,
        server_nonce: SERVER_NONCE,
        study_epoch: hello.study_epoch,
        simulation: hello.simulation,
        attempt: hello.attempt,
        rank: hello.rank,
        size: hello.size,
    }
}

fn challenge() -> Challenge {
    let key = StudyKey::from_bytes(&KEY).unwrap();
    let proof = prove(&key, Side::Server, &transcript(&hello()));
    Challenge { protocol: 1, software: "melissa-server 0.1.0".into(), nonce: SERVER_NONCE, proof }
}

fn join() -> Join {
    let share = |name: &str, dtype, size| FieldShare { name: name.into(), dtype, size };
    Join { fields: vec![share("temperature", Dtype::F64, 4), share("phase", Dtype::I32, 3)] }
}

fn welcome() -> Welcome {
    let layout = |name: &str, index, dtype, size, offset| FieldLayout {
        name: name.into(),
        index,
        dtype,
        size,
        offset,
    };
    Welcome {
        fields: vec![layout("temperature", 0, Dtype::F32, 10, 6), layout("phase", 1, Dtype::I32, 5, 2)],
        servers: vec!["node-1:40217".into()],
        distribution: "round_robin".into(),
        complete: vec![(0, 1)],
        payload_crc: true,
    }
}

/// A data frame; its elements as JSON go into the index.
fn data(dtype: Dtype, field: u32, time_step: u64, element_offset: u64, crc: bool, body: &[u8]) -> Vec<u8> {
    let header = Header {
        dtype: Some(dtype),
        simulation: 12,
        client_rank: 1,
        field,
        flags: if crc { FLAG_PAYLOAD_CRC } else { 0 },
        time_step,
        element_offset,
        element_count: (body.len() / dtype.size()) as u64,
        payload_crc: if crc { crc32c::crc32c(body) } else { 0 },
        ..Header::control(Kind::Data, body.len() as u64)
    };
    [&header.encode(), body].concat()
}

fn bytes_of<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

/// Name, sentence, bytes and the payload as JSON of each golden frame, in the order of a session.
fn frames() -> Vec<(&'static str, &'static str, Vec<u8>, Value)> {
    fn message<T: Message>(message: &T) -> (Vec<u8>, Value) {
        (encode_frame(T::KIND, message), serde_json::to_value(message).unwrap())
    }
    let key = StudyKey::from_bytes(&KEY).unwrap();
    let proof = Proof { proof: prove(&key, Side::Client, &transcript(&hello())) };
    let refused = Refused {
        code: "size".into(),
        message: "field \"phase\" has 5 elements, and 6 were declared".into(),
    };
    let finalize =
        Header { simulation: 12, client_rank: 1, time_step: 4, ..Header::control(Kind::Finalize, 0) };
    let f32s = [20.5f32, -0.25, 16_777_216.0, 0.000_976_562_5];
    let f64s = [20.5f64, -0.25, 9_007_199_254_740_992.0, 0.000_976_562_5];
    let i32s = [0i32, i32::MIN, i32::MAX];
    let i64s = [0i64, i64::MIN, i64::MAX];
    let u8s = [0u8, 1, 255];
    let mut frames = Vec::new();
    let mut add = |name, sentence, (bytes, payload): (Vec<u8>, Value)| {
        frames.push((name, sentence, bytes, payload));
    };
    add("hello", "1. Client: who calls.", message(&hello()));
    add("challenge", "2. Server: its nonce and its proof.", message(&challenge()));
    add("proof", "3. Client: its proof.", message(&proof));
    add("accepted", "4. Server: the proof holds.", message(&Accepted {}));
    add("join", "5. Client, at its first send: its fields.", message(&join()));
    add("welcome", "6. Server: offsets and dtypes; steps 0 and 1 are there already.", message(&welcome()));
    add(
        "data_float32_checksum",
        "7. Client: step 2 of \"temperature\", with the checksum that Welcome asks for.",
        (data(Dtype::F32, 0, 2, 6, true, &bytes_of(&f32s, f32::to_le_bytes)), json!(f32s.map(f64::from))),
    );
    add(
        "data_int32_checksum",
        "8. Client: step 2 of \"phase\".",
        (data(Dtype::I32, 1, 2, 2, true, &bytes_of(&i32s, i32::to_le_bytes)), json!(i32s)),
    );
    add(
        "finalize",
        "9. Client, after step 3: four steps were sent or skipped.",
        (finalize.encode().to_vec(), Value::Null),
    );
    add(
        "finalize_ack",
        "10. Server: every step of the simulation is complete in memory.",
        (Header::control(Kind::FinalizeAck, 0).encode().to_vec(), Value::Null),
    );
    add(
        "refused",
        "Server, instead of an answer or at any time later: this connection is over.",
        message(&refused),
    );
    add(
        "stop",
        "Server, at any time after Accepted: the study stops early.",
        (Header::control(Kind::Stop, 0).encode().to_vec(), Value::Null),
    );
    add(
        "data_float64",
        "Data without a checksum.",
        (data(Dtype::F64, 0, 0, 6, false, &bytes_of(&f64s, f64::to_le_bytes)), json!(f64s)),
    );
    add(
        "data_int64",
        "Data of 64-bit integers at their limits.",
        (data(Dtype::I64, 1, u64::MAX, 2, false, &bytes_of(&i64s, i64::to_le_bytes)), json!(i64s)),
    );
    add("data_uint8", "Data of bytes.", (data(Dtype::U8, 0, 1, 0, true, &u8s), json!(u8s)));
    add(
        "data_empty",
        "Data of a rank that has no part of the field: its share starts at the end.",
        (data(Dtype::F32, 0, 2, 10, true, &[]), json!([])),
    );
    frames
}

fn header_json(header: &Header) -> Value {
    json!({
        "kind": header.kind as u8,
        "dtype": header.dtype.map_or(0, |dtype| dtype as u8),
        "simulation": header.simulation,
        "client_rank": header.client_rank,
        "field": header.field,
        "flags": header.flags,
        "time_step": header.time_step,
        "element_offset": header.element_offset,
        "element_count": header.element_count,
        "payload_length": header.payload_length,
        "payload_crc": header.payload_crc,
    })
}

/// The bytes that a proof signs, written down a second time from the protocol's description.
fn signed_bytes(side: u8, t: &Transcript<'_>) -> Vec<u8> {
    let mut bytes = b"melissa-proof-1\0".to_vec();
    bytes.push(side);
    bytes.extend(t.protocol.to_le_bytes());
    bytes.extend((t.role.len() as u64).to_le_bytes());
    bytes.extend(t.role.as_bytes());
    bytes.extend(t.client_nonce);
    bytes.extend(t.server_nonce);
    bytes.extend(t.study_epoch.to_le_bytes());
    for number in [t.simulation, t.attempt, t.rank, t.size] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

fn proofs() -> Value {
    let hello = hello();
    let session = transcript(&hello);
    let widest = Transcript {
        protocol: u32::MAX,
        role: "rôle",
        client_nonce: [0xff; 32],
        server_nonce: [0; 32],
        study_epoch: u64::MAX,
        simulation: 1,
        attempt: 2,
        rank: 3,
        size: 4,
    };
    let empty = Transcript { role: "", ..session };
    let cases = [
        ("the example session", &KEY[..], session),
        ("the shortest key", &KEY[..16], session),
        ("a key longer than a block of SHA-256", &[0xaa; 65][..], session),
        ("numbers at their limits, and a role of five bytes", &KEY[..], widest),
        ("an empty role", &KEY[..], empty),
    ];
    let vectors: Vec<Value> = cases
        .iter()
        .flat_map(|(what, key, t)| {
            [(Side::Server, "server", 1), (Side::Client, "client", 2)].map(|(side, name, code)| {
                json!({
                    "is": what,
                    "key": hex(key),
                    "side": name,
                    "transcript": {
                        "protocol": t.protocol,
                        "role": t.role,
                        "client_nonce": hex(&t.client_nonce),
                        "server_nonce": hex(&t.server_nonce),
                        "study_epoch": t.study_epoch,
                        "simulation": t.simulation,
                        "attempt": t.attempt,
                        "rank": t.rank,
                        "size": t.size,
                    },
                    "signed": hex(&signed_bytes(code, t)),
                    "proof": hex(&prove(&StudyKey::from_bytes(key).unwrap(), side, t)),
                })
            })
        })
        .collect();
    json!(vectors)
}

// Attacks.

/// Which part of a receiver refuses a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The stream ends before the frame does.
    Stream,
    Header,
    /// The payload of a control frame.
    Message,
    /// The payload of a data frame against the header's checksum.
    Checksum,
    /// Every frame is well-formed; only what a server knows of its studies and of this connection refuses it.
    Session,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Header => "header",
            Self::Message => "message",
            Self::Checksum => "checksum",
            Self::Session => "session",
        }
    }
}

struct Attack {
    name: String,
    is: String,
    stage: Stage,
    /// The rule that is broken: the name of the parser's error.
    error: &'static str,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Attacks(Vec<Attack>);

impl Attacks {
    fn add(&mut self, stage: Stage, error: &'static str, name: &str, is: &str, bytes: Vec<u8>) {
        self.0.push(Attack { name: name.into(), is: is.into(), stage, error, bytes });
    }

    /// A header with one place overwritten and its checksum made right again.
    fn header(&mut self, error: &'static str, name: &str, is: &str, header: Header, at: usize, patch: &[u8]) {
        self.add(Stage::Header, error, name, is, sealed(header, at, patch));
    }

    /// A control frame with this payload.
    fn payload(&mut self, error: &'static str, name: &str, is: &str, kind: Kind, payload: impl AsRef<[u8]>) {
        let payload = payload.as_ref();
        let header = Header::control(kind, payload.len() as u64).encode();
        self.add(Stage::Message, error, name, is, [&header, payload].concat());
    }

    /// The message with one key set to another value, or removed.
    fn message<T: Message>(&mut self, error: &'static str, name: &str, is: &str, message: &T, change: Value) {
        let mut value = serde_json::to_value(message).unwrap();
        for (key, new) in change.as_object().unwrap() {
            assert!(value.get(key).is_some(), "{name}: no key {key}");
            match new {
                Value::Null => drop(value.as_object_mut().unwrap().remove(key)),
                new => value[key] = new.clone(),
            }
        }
        self.payload(error, name, is, T::KIND, value.to_string());
    }
}

fn sealed(header: Header, at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = header.encode();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    let checksum = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&checksum.to_le_bytes());
    bytes.to_vec()
}

fn attacks() -> Vec<Attack> {
    let mut all = Attacks::default();
    header_attacks(&mut all);
    message_attacks(&mut all);
    stream_attacks(&mut all);
    session_attacks(&mut all);
    all.0
}

fn data_header(dtype: Dtype, offset: u64, count: u64, length: u64) -> Header {
    Header {
        dtype: Some(dtype),
        simulation: 12,
        element_offset: offset,
        element_count: count,
        ..Header::control(Kind::Data, length)
    }
}

fn header_attacks(all: &mut Attacks) {
    let hello = Header::control(Kind::Hello, 2);
    let data = data_header(Dtype::F64, 0, 4, 32);
    let mut http = b"GET /server/status HTTP/1.1\r\nHost: node-1:40217\r\nUser-Agent: probe\r\n\r\n".to_vec();
    http.resize(http.len().max(HEADER_SIZE), b' ');
    all.add(Stage::Header, "Magic", "http_request", "A browser or a health check calls the data port.", http);
    let mut tls = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    tls.resize(200, 0x5c);
    all.add(Stage::Header, "Magic", "tls_client_hello", "A TLS client calls a port without TLS.", tls);
    all.add(
        Stage::Header,
        "Magic",
        "zeros",
        "64 zero bytes, as a sparse file or a zeroed buffer gives.",
        vec![0; 64],
    );
    all.add(Stage::Header, "Magic", "ones", "64 bytes of 0xff.", vec![0xff; 64]);
    all.header("Magic", "magic_backwards", "The magic in the other byte order.", hello, 0, b"ASLM");
    all.header("Version", "version_2", "A later version.", hello, 4, &[2, 0]);
    all.header("Version", "version_big_endian", "Version 1 in the other byte order.", hello, 4, &[0, 1]);
    let mut flipped = hello.encode().to_vec();
    flipped[48] ^= 1;
    all.add(
        Stage::Header,
        "Checksum",
        "checksum_flipped_bit",
        "One bit of the payload length is flipped.",
        flipped,
    );
    let mut unsealed = hello.encode().to_vec();
    unsealed[60..].fill(0);
    all.add(
        Stage::Header,
        "Checksum",
        "checksum_zero",
        "A client that left the header's checksum out.",
        unsealed,
    );
    let mut crc32 = hello.encode().to_vec();
    crc32[60..].reverse();
    all.add(Stage::Header, "Checksum", "checksum_big_endian", "The checksum in the other byte order.", crc32);
    all.header("Kind", "kind_0", "Kind 0 is none.", hello, 6, &[0]);
    all.header("Kind", "kind_12", "The first unknown kind.", hello, 6, &[12]);
    all.header("Dtype", "dtype_6", "The first unknown dtype.", data, 7, &[6]);
    all.header("NoDtype", "data_without_dtype", "Data whose elements have no dtype.", data, 7, &[0]);
    all.header("Flags", "flags_unknown", "A flag that this version does not have.", data, 20, &[2]);
    all.header(
        "Unused",
        "data_checksum_without_flag",
        "A payload checksum that no flag announces.",
        data,
        56,
        &[1],
    );
    for (name, at) in
        [("dtype", 7), ("field", 16), ("flags", 20), ("time_step", 24), ("offset", 32), ("count", 40)]
    {
        let is = format!("Hello with something at byte {at}, which belongs to data.");
        all.header("Unused", &format!("hello_with_{name}"), &is, hello, at, &[1]);
    }
    for kind in Kind::ALL {
        let Some(limit) = kind.payload_limit() else { continue };
        let is = format!("{kind} announces one byte more than its limit of {limit}.");
        let name = format!("{}_payload_one_too_long", kind.name().to_lowercase());
        all.header("PayloadTooLarge", &name, &is, Header::control(kind, limit + 1), 0, b"");
    }
    let huge = Header::control(Kind::Hello, u64::MAX);
    let is = "Hello announces 2^64 - 1 bytes: a receiver that allocates, or adds the header's size, is lost.";
    all.header("PayloadTooLarge", "hello_payload_of_all_memory", is, huge, 0, b"");
    let is = "Four elements of eight bytes in a payload of 31.";
    all.header(
        "PayloadLength",
        "data_length_not_count_times_size",
        is,
        data_header(Dtype::F64, 0, 4, 31),
        0,
        b"",
    );
    let is = "2^61 elements of eight bytes wrap around to the announced 0.";
    all.header("PayloadLength", "data_count_wraps", is, data_header(Dtype::F64, 0, 1 << 61, 0), 0, b"");
    let is = "2^61 + 4 elements of eight bytes wrap around to the announced 32.";
    all.header(
        "PayloadLength",
        "data_count_wraps_to_some",
        is,
        data_header(Dtype::F64, 0, (1 << 61) + 4, 32),
        0,
        b"",
    );
    let is = "Offset and count together wrap around to element 3 of the field.";
    all.header("ElementRange", "data_offset_wraps", is, data_header(Dtype::F64, u64::MAX, 4, 32), 0, b"");
}

fn message_attacks(all: &mut Attacks) {
    let hello = hello();
    let text = serde_json::to_string(&hello).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    let k = Kind::Hello;
    all.payload("NotUtf8", "hello_not_utf8", "A host name in Latin-1.", k, {
        let at = text.find("node-17").unwrap();
        let mut bytes = text.clone().into_bytes();
        bytes[at] = 0xe9;
        bytes
    });
    let deep = with("\"pid\":4242", &format!("\"pid\":4242,\"x\":{}", "[".repeat(3000)));
    all.payload(
        "TooDeep",
        "hello_deep",
        "3000 open brackets: a recursive parser runs out of stack.",
        k,
        deep,
    );
    all.payload("NoObject", "hello_empty", "No payload at all.", k, "");
    all.payload("NoObject", "hello_null", "JSON, but no object.", k, "null");
    let values = "[1,\"s\",\"client\",\"00\",1,12,2,1,2,\"h\",1]";
    all.payload("NoObject", "hello_list", "The values without their names.", k, values);
    all.payload(
        "NoObject",
        "hello_byte_order_mark",
        "A byte order mark before the object.",
        k,
        format!("\u{feff}{text}"),
    );
    all.payload(
        "Json",
        "hello_cut",
        "The object is cut, and the header knows of it.",
        k,
        &text[..text.len() - 1],
    );
    all.payload("Json", "hello_trailing", "Something behind the object.", k, format!("{text}{{}}"));
    all.payload("Json", "hello_trailing_zero", "The terminating zero of a C string.", k, format!("{text}\0"));
    let twice = with("\"rank\":1", "\"rank\":0,\"rank\":1");
    all.payload(
        "Json",
        "hello_key_twice",
        "Two ranks: one parser takes the first, another the last.",
        k,
        twice,
    );
    let lone = with("node-17", "\\ud800");
    all.payload("Json", "hello_lone_surrogate", "Half of a UTF-16 pair as an escape.", k, lone);
    let raw = with("node-17", "node\n17");
    all.payload("Json", "hello_raw_newline", "A line feed within a text without an escape.", k, raw);
    all.payload("Json", "hello_nan", "Not a number, as Python's json writes it.", k, with(":4242", ":NaN"));
    all.payload(
        "Json",
        "hello_rank_1e400",
        "A number beyond float64.",
        k,
        with("\"rank\":1", "\"rank\":1e400"),
    );
    all.message("Json", "hello_without_nonce", "A key is missing.", &hello, json!({"nonce": null}));
    all.message("Json", "hello_rank_text", "A number as a text.", &hello, json!({"rank": "1"}));
    all.message("Json", "hello_rank_negative", "A negative rank.", &hello, json!({"rank": -1}));
    all.message("Json", "hello_rank_fraction", "A rank with a fraction.", &hello, json!({"rank": 1.5}));
    all.message("Json", "hello_rank_2_to_32", "A rank beyond 32 bits.", &hello, json!({"rank": 1u64 << 32}));
    all.message(
        "Json",
        "hello_nonce_short",
        "A nonce of 31 bytes.",
        &hello,
        json!({"nonce": "00".repeat(31)}),
    );
    all.message(
        "Json",
        "hello_nonce_long",
        "A nonce of 33 bytes.",
        &hello,
        json!({"nonce": "00".repeat(33)}),
    );
    all.message("Json", "hello_nonce_no_hex", "Letters beyond f.", &hello, json!({"nonce": "0g".repeat(32)}));
    let is = "64 bytes of 32 letters: a parser that cuts at bytes cuts a letter in two.";
    all.message("Json", "hello_nonce_unicode", is, &hello, json!({"nonce": "é".repeat(32)}));
    all.message("Value", "hello_rank_is_size", "Rank 2 of 2 ranks.", &hello, json!({"rank": 2}));
    all.message("Value", "hello_size_0", "Rank 0 of no ranks.", &hello, json!({"rank": 0, "size": 0}));
    let is = "A host name that pretends to be another line of the log.";
    all.message("Value", "hello_host_of_two_lines", is, &hello, json!({"host": "a\nERROR: study failed"}));
    let is = "Software that moves the cursor of a terminal.";
    all.message("Value", "hello_software_escape", is, &hello, json!({"software": "\u{1b}[2J"}));

    let is = "A proof of 31 bytes.";
    all.message("Json", "challenge_proof_short", is, &challenge(), json!({"proof": "00".repeat(31)}));
    all.message(
        "Json",
        "proof_empty",
        "A proof of no bytes.",
        &Proof { proof: [0; 32] },
        json!({"proof": ""}),
    );

    let field = |name: &str, dtype: &str, size: Value| json!({"name": name, "dtype": dtype, "size": size});
    let fields = |fields: Vec<Value>| json!({ "fields": fields });
    let one = || field("a", "float64", json!(1));
    all.message("Value", "join_no_fields", "A client without fields.", &join(), fields(vec![]));
    all.message("Value", "join_field_twice", "One name for two fields.", &join(), fields(vec![one(), one()]));
    let nameless = fields(vec![field("", "float64", json!(1))]);
    all.message("Value", "join_field_without_name", "An empty name.", &join(), nameless);
    let long = fields(vec![field(&"x".repeat(257), "float64", json!(1))]);
    all.message("Value", "join_name_of_257_bytes", "A name one byte too long.", &join(), long);
    let lines = fields(vec![field("a\r\nb", "float64", json!(1))]);
    all.message("Value", "join_name_of_two_lines", "A name with a line feed.", &join(), lines);
    let unknown = fields(vec![field("a", "float16", json!(1))]);
    all.message("Json", "join_dtype_unknown", "A dtype that no field has.", &join(), unknown);
    let negative = fields(vec![field("a", "float64", json!(-1))]);
    all.message("Json", "join_size_negative", "A negative size.", &join(), negative);
    let escape = fields(vec![field("\u{1b}]0;owned\u{7}", "float64", json!(1))]);
    let is = "A name that sets the title of a terminal.";
    all.message("Value", "join_name_escape", is, &join(), escape);
    let escape = fields(vec![field("a", "\u{1b}[2J\r\nERROR: the study failed", json!(1))]);
    let is = "A dtype that wipes a terminal and pretends to be another line of the log, where it is quoted.";
    all.message("Json", "join_dtype_escape", is, &join(), escape);
    let long = fields(vec![field("a", &"\u{7f}".repeat(60_000), json!(1))]);
    let is = "A dtype of 60,000 control characters: what quotes it grows by the escapes.";
    all.message("Json", "join_dtype_of_60000_bytes", is, &join(), long);
    let text = fields(vec![field("a", "float64", json!("9".repeat(60_000)))]);
    let is = "A size that is a text of 60,000 digits.";
    all.message("Json", "join_size_of_60000_digits", is, &join(), text);
    let digits =
        format!("{{\"fields\":[{{\"name\":\"a\",\"dtype\":\"uint8\",\"size\":{}}}]}}", "9".repeat(60_000));
    all.payload("Json", "join_size_of_60000_nines", "A number of 60,000 digits.", Kind::Join, digits);
    let deep = format!("{{\"fields\":[],\"x\":{}", "{\"x\":".repeat(10_000));
    let is = "10,000 objects within one another under a key that nobody reads.";
    all.payload("TooDeep", "join_deep", is, Kind::Join, deep);
    let beyond = "{\"fields\":[{\"name\":\"a\",\"dtype\":\"float64\",\"size\":18446744073709551616}]}";
    all.payload("Json", "join_size_2_to_64", "A size beyond 64 bits.", Kind::Join, beyond);

    let complete = |ranges: Value| json!({ "complete": ranges });
    let w = welcome();
    all.message("Value", "welcome_range_backwards", "Steps 3 to 2.", &w, complete(json!([[3, 2]])));
    all.message("Value", "welcome_ranges_overlap", "Step 4 twice.", &w, complete(json!([[0, 4], [4, 5]])));
    all.message(
        "Value",
        "welcome_ranges_unsorted",
        "Ranges out of order.",
        &w,
        complete(json!([[5, 6], [0, 1]])),
    );
    let is = "A range behind one that ends at the last number there is.";
    all.message("Value", "welcome_range_after_the_last", is, &w, complete(json!([[0, u64::MAX], [1, 2]])));
    let mut far = w.clone();
    far.fields[0].offset = far.fields[0].size + 1;
    let is = "A share that starts behind the end of its field.";
    all.message("Value", "welcome_offset_beyond", is, &far, json!({}));
}

fn stream_attacks(all: &mut Attacks) {
    let hello = encode_frame(Kind::Hello, &hello());
    all.add(Stage::Stream, "Truncated", "cut_in_the_header", "63 bytes, then the end.", hello[..63].to_vec());
    let is = "Half of the payload that the header announces, then the end.";
    all.add(Stage::Stream, "Truncated", "cut_in_the_payload", is, hello[..hello.len() / 2].to_vec());
    let mut damaged = data(Dtype::F32, 0, 2, 6, true, &[0; 16]);
    let last = damaged.len() - 1;
    damaged[last] ^= 0x80;
    let is = "The sign of the last element is flipped.";
    all.add(Stage::Checksum, "PayloadChecksum", "data_flipped_bit", is, damaged);
}

fn session_attacks(all: &mut Attacks) {
    let frame = |hello: &Hello| encode_frame(Kind::Hello, hello);
    let hello = hello();
    let mut add = |name: &str, is: &str, bytes: Vec<u8>| all.add(Stage::Session, "Refused", name, is, bytes);
    add(
        "data_before_hello",
        "Data from someone who has not said who they are.",
        data(Dtype::F32, 0, 2, 6, false, &[0; 16]),
    );
    add("join_before_hello", "Join from someone who has proved nothing.", encode_frame(Kind::Join, &join()));
    add("hello_twice", "A second Hello instead of the proof.", [frame(&hello), frame(&hello)].concat());
    add(
        "welcome_from_a_client",
        "A message that only servers send.",
        encode_frame(Kind::Welcome, &welcome()),
    );
    add(
        "challenge_from_a_client",
        "The server's proof, as a client that lies in between might send it back.",
        encode_frame(Kind::Challenge, &challenge()),
    );
    add(
        "accepted_from_a_client",
        "A client that lets itself in.",
        encode_frame(Kind::Accepted, &Accepted {}),
    );
    let refused = Refused { code: "key".into(), message: "no".into() };
    add("refused_from_a_client", "A client that refuses the server.", encode_frame(Kind::Refused, &refused));
    add(
        "finalize_ack_from_a_client",
        "A client that acknowledges to itself.",
        Header::control(Kind::FinalizeAck, 0).encode().to_vec(),
    );
    add(
        "stop_from_a_client",
        "A client that wants to stop the study.",
        Header::control(Kind::Stop, 0).encode().to_vec(),
    );
    let reflected = Proof { proof: challenge().proof };
    let is = "The server's own proof of the example session, sent back to it.";
    add("proof_reflected", is, [frame(&hello), encode_frame(Kind::Proof, &reflected)].concat());
    let recorded =
        Proof { proof: prove(&StudyKey::from_bytes(&KEY).unwrap(), Side::Client, &transcript(&hello)) };
    let is = "The client's side of the example session, recorded and sent again: the server's nonce is another one.";
    add("proof_replayed", is, [frame(&hello), encode_frame(Kind::Proof, &recorded)].concat());
    let largest = Hello {
        simulation: u32::MAX,
        attempt: u32::MAX,
        rank: u32::MAX - 1,
        size: u32::MAX,
        study_epoch: u64::MAX,
        pid: u32::MAX,
        ..hello.clone()
    };
    let unproved = encode_frame(Kind::Proof, &Proof { proof: [0; 32] });
    let is = "The last of 2^32 - 1 ranks of the last of all simulations, with a proof of zeros: memory does not follow \
              numbers that somebody states.";
    add("hello_of_all_ranks", is, [frame(&largest), unproved.clone()].concat());
    let long = Hello { software: "é".repeat(800), host: "x".repeat(1900), ..hello.clone() };
    let is = "Names as long as a Hello allows, for the log, with a proof of zeros.";
    add("hello_of_4000_bytes", is, [frame(&long), unproved].concat());
    let role = |role: &str| frame(&Hello { role: role.into(), ..hello.clone() });
    add("hello_role_server", "A role that no client has.", role("server"));
    add("hello_protocol_2", "A later protocol.", frame(&Hello { protocol: 2, ..hello.clone() }));
    add(
        "hello_epoch_0",
        "A client of a study's earlier start.",
        frame(&Hello { study_epoch: 0, ..hello.clone() }),
    );
    let is = "One byte from each of 2^64 - 1 elements: well-formed, and only the schema says that no field has them.";
    add("data_of_all_memory", is, sealed(data_header(Dtype::U8, 0, u64::MAX, u64::MAX), 0, b""));
    let wild = Header {
        field: u32::MAX,
        client_rank: u32::MAX,
        time_step: u64::MAX,
        ..data_header(Dtype::U8, 0, 0, 0)
    };
    add("data_of_no_field", "Field, rank and time step at the largest numbers.", sealed(wild, 0, b""));
    join_attacks(&mut add);
    step_attacks(&mut add);
}

/// What a rank that holds the key may declare, and should not.
fn join_attacks(add: &mut impl FnMut(&str, &str, Vec<u8>)) {
    let declared = |fields: Vec<(String, Dtype, u64)>| {
        let fields = fields.into_iter().map(|(name, dtype, size)| FieldShare { name, dtype, size }).collect();
        encode_frame(Kind::Join, &Join { fields })
    };
    let sizes =
        |size| declared(vec![("temperature".into(), Dtype::F64, size), ("phase".into(), Dtype::I32, size)]);
    add("join_of_all_memory", "Fields of 2^61 elements: their bytes wrap around to 0.", sizes(1 << 61));
    add("join_sizes_wrap", "Sizes that wrap around when the ranks' are added up.", sizes(u64::MAX));
    add("join_of_nothing", "Fields without elements.", sizes(0));
    let many = (0..1500).map(|index| (format!("f{index}"), Dtype::U8, 1)).collect();
    add("join_of_1500_fields", "As many fields as a Join holds.", declared(many));
    let long = (0..200).map(|index| (format!("{index:0>256}"), Dtype::U8, 1)).collect();
    add(
        "join_of_long_names",
        "200 names of the greatest length, to be compared with the study's.",
        declared(long),
    );
}

/// Data and Finalize of the example session's rank whose every number fits, but for one.
fn step_attacks(add: &mut impl FnMut(&str, &str, Vec<u8>)) {
    let good = Header {
        client_rank: 1,
        time_step: 2,
        payload_crc: crc32c::crc32c(&[0; 16]),
        flags: FLAG_PAYLOAD_CRC,
        ..data_header(Dtype::F32, 6, 4, 16)
    };
    let frame = |header: Header| [&header.encode()[..], &[0; 16]].concat();
    let of_step = |time_step| frame(Header { time_step, ..good });
    add("data_of_the_last_step", "Time step 2^64 - 1: no table of steps grows to it.", of_step(u64::MAX));
    add("data_far_ahead", "A time step far ahead of the next one.", of_step(60_000));
    add("data_one_step_ahead", "A time step is left out.", of_step(3));
    add("data_of_another_simulation", "A step of simulation 13.", frame(Header { simulation: 13, ..good }));
    add("data_of_another_rank", "The share of rank 0.", frame(Header { client_rank: 0, ..good }));
    let shifted = Header { element_offset: 5, ..good };
    add("data_over_another_share", "A share that starts with the last element of rank 0.", frame(shifted));
    let is = "A share beyond the end of the field.";
    add("data_behind_the_field", is, frame(Header { element_offset: 7, ..good }));
    let nothing = Header { element_count: 0, payload_length: 0, payload_crc: 0, ..good };
    add("data_of_no_element", "None of the four elements.", nothing.encode().to_vec());
    add(
        "data_of_another_dtype",
        "Bits of int32 for a field of float32.",
        frame(Header { dtype: Some(Dtype::I32), ..good }),
    );
    let unsummed = Header { flags: 0, payload_crc: 0, ..good };
    add(
        "data_without_the_checksum",
        "No checksum of the payload, although Welcome asks for it.",
        frame(unsummed),
    );
    add(
        "data_cut_in_the_body",
        "Nine of the sixteen bytes that the header announces, then the end.",
        frame(good)[..HEADER_SIZE + 9].to_vec(),
    );
    let finalize = |time_step| {
        let header =
            Header { simulation: 12, client_rank: 1, time_step, ..Header::control(Kind::Finalize, 0) };
        header.encode().to_vec()
    };
    add(
        "finalize_of_all_steps",
        "2^64 - 1 time steps were sent, it says: so many more would be expected.",
        finalize(u64::MAX),
    );
    let of_another = Header { simulation: 13, client_rank: 1, ..Header::control(Kind::Finalize, 0) };
    add("finalize_of_another_simulation", "A rank that ends simulation 13.", of_another.encode().to_vec());
    add("finalize_twice", "A second Finalize.", [finalize(2), finalize(2)].concat());
    add("data_after_finalize", "A time step after the last.", [finalize(2), frame(good)].concat());
    add(
        "hello_after_finalize",
        "A new beginning on an old connection.",
        [finalize(2), encode_frame(Kind::Hello, &hello())].concat(),
    );
}

/// Everything that belongs into the folder.
fn files() -> Files {
    let mut files = Files::new();
    let mut index = Vec::new();
    for (name, sentence, bytes, payload) in frames() {
        let (header, _) = bytes.split_first_chunk().unwrap();
        let header = Header::parse(header).unwrap();
        index.push(json!({
            "file": format!("{name}.bin"),
            "is": sentence,
            "kind": header.kind.name(),
            "header": header_json(&header),
            "payload": payload,
        }));
        assert!(files.insert(format!("{name}.bin"), bytes).is_none(), "{name} stands twice");
    }
    files.insert("index.json".into(), pretty(&json!({ "key": hex(&KEY), "frames": index })));
    files.insert("proofs.json".into(), pretty(&proofs()));
    let mut index = Vec::new();
    for Attack { name, is, stage, error, bytes } in attacks() {
        let file = format!("{name}.bin");
        index.push(json!({ "file": file, "is": is, "stage": stage.name(), "error": error }));
        assert!(files.insert(format!("attacks/{file}"), bytes).is_none(), "{name} stands twice");
    }
    files.insert("attacks/index.json".into(), pretty(&json!(index)));
    files
}

fn present() -> BTreeSet<String> {
    let names = |at: &Path, prefix: &str| -> Vec<String> {
        std::fs::read_dir(at)
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| format!("{prefix}{}", entry.file_name().to_str().unwrap()))
            .collect()
    };
    names(&folder(), "").into_iter().chain(names(&folder().join("attacks"), "attacks/")).collect()
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

#[test]
fn the_files_are_what_this_version_writes() {
    let files = files();
    if std::env::var_os("MELISSA_WRITE_WIRE_FIXTURES").is_some() {
        std::fs::create_dir_all(folder().join("attacks")).unwrap();
        for stale in present().difference(&files.keys().cloned().collect()) {
            std::fs::remove_file(folder().join(stale)).unwrap();
        }
        for (name, bytes) in &files {
            std::fs::write(folder().join(name), bytes).unwrap();
        }
    }
    assert_eq!(present(), files.keys().cloned().collect());
    for (name, bytes) in files {
        assert!(read(&name) == bytes, "{name} differs from what this version writes");
    }
}

/// What a control frame's payload is, read as its kind says, and as JSON again.
fn reparsed(kind: Kind, payload: &[u8]) -> Result<Value, HandshakeError> {
    fn again<T: Message>(payload: &[u8]) -> Result<Value, HandshakeError> {
        let message: T = handshake::parse(payload)?;
        Ok(serde_json::to_value(&message).unwrap())
    }
    match kind {
        Kind::Hello => again::<Hello>(payload),
        Kind::Challenge => again::<Challenge>(payload),
        Kind::Proof => again::<Proof>(payload),
        Kind::Accepted => again::<Accepted>(payload),
        Kind::Join => again::<Join>(payload),
        Kind::Welcome => again::<Welcome>(payload),
        Kind::Refused => again::<Refused>(payload),
        Kind::Data | Kind::Finalize | Kind::FinalizeAck | Kind::Stop => Ok(Value::Null),
    }
}

#[test]
fn every_golden_frame_reads_as_its_index_says() {
    let index = read_json("index.json");
    let mut kinds = BTreeSet::new();
    for entry in index["frames"].as_array().unwrap() {
        let name = entry["file"].as_str().unwrap();
        let bytes = read(name);
        let (header, payload) = bytes.split_first_chunk::<HEADER_SIZE>().unwrap();
        let header = Header::parse(header).unwrap();
        assert_eq!(header_json(&header), entry["header"], "{name}");
        assert_eq!(header.kind.name(), entry["kind"], "{name}");
        assert_eq!(header.payload_len(), payload.len(), "{name}");
        kinds.insert(header.kind as u8);
        if header.kind != Kind::Data {
            assert_eq!(reparsed(header.kind, payload).unwrap(), entry["payload"], "{name}");
            continue;
        }
        let elements: Vec<Value> = payload
            .chunks_exact(header.dtype.unwrap().size())
            .map(|element| match header.dtype.unwrap() {
                Dtype::F32 => json!(f64::from(f32::from_le_bytes(element.try_into().unwrap()))),
                Dtype::F64 => json!(f64::from_le_bytes(element.try_into().unwrap())),
                Dtype::I32 => json!(i32::from_le_bytes(element.try_into().unwrap())),
                Dtype::I64 => json!(i64::from_le_bytes(element.try_into().unwrap())),
                Dtype::U8 => json!(element[0]),
            })
            .collect();
        assert_eq!(json!(elements), entry["payload"], "{name}");
        if header.flags & FLAG_PAYLOAD_CRC != 0 {
            assert_eq!(crc32c::crc32c(payload), header.payload_crc, "{name}");
        }
    }
    assert_eq!(kinds, Kind::ALL.map(|kind| kind as u8).into(), "every kind has a golden frame");
}

#[test]
fn every_proof_is_the_standard_hmac_of_its_signed_bytes() {
    let vectors = read_json("proofs.json");
    let vectors = vectors.as_array().unwrap();
    assert_eq!(vectors.len(), 10);
    for vector in vectors {
        let text = |name: &str| vector[name].as_str().unwrap();
        let t = &vector["transcript"];
        let number = |name: &str| u32::try_from(t[name].as_u64().unwrap()).unwrap();
        let nonce = |name: &str| unhex(t[name].as_str().unwrap()).try_into().unwrap();
        let transcript = Transcript {
            protocol: number("protocol"),
            role: t["role"].as_str().unwrap(),
            client_nonce: nonce("client_nonce"),
            server_nonce: nonce("server_nonce"),
            study_epoch: t["study_epoch"].as_u64().unwrap(),
            simulation: number("simulation"),
            attempt: number("attempt"),
            rank: number("rank"),
            size: number("size"),
        };
        let side = if text("side") == "server" { Side::Server } else { Side::Client };
        let proof = unhex(text("proof"));
        assert!(verify(&StudyKey::from_hex(text("key")).unwrap(), side, &transcript, &proof), "{vector}");
        let mut mac = Hmac::<Sha256>::new_from_slice(&unhex(text("key"))).unwrap();
        mac.update(&unhex(text("signed")));
        assert_eq!(hex(&mac.finalize().into_bytes()), text("proof"));
    }
}

/// Stage and name of the error at which a receiver stops, reading frame after frame.
fn refused_at(bytes: &[u8]) -> (Stage, String) {
    fn rule(error: &impl std::fmt::Debug) -> String {
        format!("{error:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some((header, behind)) = rest.split_first_chunk::<HEADER_SIZE>() else {
            return (Stage::Stream, "Truncated".into());
        };
        let header = match Header::parse(header) {
            Ok(header) => header,
            Err(error) => return (Stage::Header, rule(&error)),
        };
        let Some((payload, behind)) = behind.split_at_checked(header.payload_len()) else {
            let within_memory = header.kind != Kind::Data;
            return if within_memory {
                (Stage::Stream, "Truncated".into())
            } else {
                // A server looks at its schema before it waits for so many bytes.
                (Stage::Session, "Refused".into())
            };
        };
        if let Err(error) = reparsed(header.kind, payload) {
            return (Stage::Message, rule(&error));
        }
        if header.flags & FLAG_PAYLOAD_CRC != 0 && crc32c::crc32c(payload) != header.payload_crc {
            return (Stage::Checksum, "PayloadChecksum".into());
        }
        rest = behind;
    }
    (Stage::Session, "Refused".into())
}

#[test]
fn every_attack_is_refused_where_and_for_the_rule_that_its_index_says() {
    let index = read_json("attacks/index.json");
    let entries = index.as_array().unwrap();
    assert!(entries.len() > 120, "{} attacks", entries.len());
    let mut rules = BTreeSet::new();
    for entry in entries {
        let text = |name: &str| entry[name].as_str().unwrap();
        let (stage, error) = refused_at(&read(&format!("attacks/{}", text("file"))));
        assert_eq!((stage.name(), error.as_str()), (text("stage"), text("error")), "{entry}");
        rules.insert(error);
    }
    // Every error that a parser has, but for a message beyond its limit, which the header's rule catches first.
    let all = "Magic Version Checksum Kind Dtype NoDtype Flags Unused PayloadTooLarge ElementRange PayloadLength \
               NotUtf8 TooDeep NoObject Json Value Truncated PayloadChecksum Refused";
    assert_eq!(rules, all.split_whitespace().map(String::from).collect());
}
