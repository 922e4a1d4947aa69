"""The golden bytes of the protocol, read with nothing but docs/protocol.md and the standard library."""

import hashlib
import hmac
import json
import re
import struct
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
WIRE = TESTS / "data" / "wire"
PAGE = TESTS.parent / "docs" / "protocol.md"
HEADER = struct.Struct("<4sHBBIIIIQQQQII")
NAMES = ["magic", "version", "kind", "dtype", "simulation", "client_rank", "field", "flags", "time_step"]
NAMES += ["element_offset", "element_count", "payload_length", "payload_crc", "header_crc"]
ELEMENTS = {1: "f", 2: "d", 3: "i", 4: "q", 5: "B"}
SIZES = {dtype: struct.calcsize(f"<{code}") for dtype, code in ELEMENTS.items()}
LONGEST = {1: 4032, 2: 4032, 3: 4032, 4: 4032, 5: 65536, 6: 1 << 20, 7: 1 << 20, 9: 0, 10: 0, 11: 0}
DATA, FINALIZE = 8, 9


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def broken_rule(data: bytes) -> str | None:
    """Name the first rule of the header that these bytes break."""
    header = dict(zip(NAMES, HEADER.unpack(data[:64]), strict=True))
    kind, dtype = header["kind"], header["dtype"]
    unused = [dtype, *(header[name] for name in ("field", "flags", "element_offset", "element_count"))]
    if kind != FINALIZE:
        unused.append(header["time_step"])
    is_data = kind == DATA
    rules = {
        "Magic": lambda: header["magic"] == b"MLSA",
        "Version": lambda: header["version"] == 1,
        "Checksum": lambda: header["header_crc"] == crc32c(data[:60]),
        "Kind": lambda: 1 <= kind <= 11,
        "Dtype": lambda: dtype <= 5,
        "Flags": lambda: header["flags"] <= 1,
        "Unused": lambda: (header["flags"] or not header["payload_crc"]) and (is_data or not any(unused)),
        "NoDtype": lambda: not is_data or dtype != 0,
        "ElementRange": lambda: not is_data or header["element_offset"] + header["element_count"] < 1 << 64,
        "PayloadLength": lambda: (
            not is_data or header["payload_length"] == header["element_count"] * SIZES[dtype]
        ),
        "PayloadTooLarge": lambda: is_data or header["payload_length"] <= LONGEST[kind],
    }
    return next((name for name, holds in rules.items() if not holds()), None)


def cases(index: Path) -> list:
    entries = json.loads(index.read_text())
    entries = entries["frames"] if isinstance(entries, dict) else entries
    assert entries
    return [pytest.param(entry, id=entry["file"].removesuffix(".bin")) for entry in entries]


def test_the_checksum_is_the_one_that_the_page_describes():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("entry", cases(WIRE / "index.json"))
def test_a_golden_frame_reads_as_its_index_says_and_is_written_the_same(entry):
    data = (WIRE / entry["file"]).read_bytes()
    assert broken_rule(data) is None
    header = dict(zip(NAMES, HEADER.unpack(data[:64]), strict=True))
    payload = data[64:]
    assert {name: header[name] for name in entry["header"]} == entry["header"]
    assert header["payload_length"] == len(payload)
    packed = HEADER.pack(b"MLSA", 1, *(entry["header"][name] for name in NAMES[2:-1]), 0)[:60]
    assert packed + struct.pack("<I", crc32c(packed)) == data[:64]
    if header["kind"] == DATA:
        layout = f"<{header['element_count']}{ELEMENTS[header['dtype']]}"
        assert list(struct.unpack(layout, payload)) == entry["payload"]
        assert struct.pack(layout, *entry["payload"]) == payload
        if header["flags"]:
            assert crc32c(payload) == header["payload_crc"]
    elif payload:
        assert json.loads(payload) == entry["payload"]
    else:
        assert entry["payload"] is None


def test_every_proof_is_the_hmac_of_the_bytes_that_the_page_lists():
    vectors = json.loads((WIRE / "proofs.json").read_text())
    assert vectors
    for vector in vectors:
        t = vector["transcript"]
        role = t["role"].encode()
        signed = (
            b"melissa-proof-1\0"
            + struct.pack("<BIQ", {"server": 1, "client": 2}[vector["side"]], t["protocol"], len(role))
            + role
            + bytes.fromhex(t["client_nonce"])
            + bytes.fromhex(t["server_nonce"])
            + struct.pack("<QIIII", t["study_epoch"], t["simulation"], t["attempt"], t["rank"], t["size"])
        )
        assert signed.hex() == vector["signed"]
        assert hmac.new(bytes.fromhex(vector["key"]), signed, hashlib.sha256).hexdigest() == vector["proof"]


def test_the_proofs_of_the_example_session_are_those_in_its_frames():
    index = json.loads((WIRE / "index.json").read_text())
    frames = {frame["kind"]: frame["payload"] for frame in index["frames"]}
    vectors = json.loads((WIRE / "proofs.json").read_text())
    of_session = {v["side"]: v["proof"] for v in vectors if v["is"] == "the example session"}
    assert of_session == {"server": frames["Challenge"]["proof"], "client": frames["Proof"]["proof"]}


@pytest.mark.parametrize("entry", cases(WIRE / "attacks" / "index.json"))
def test_an_attack_breaks_the_rule_of_the_header_that_its_index_names(entry):
    data = (WIRE / "attacks" / entry["file"]).read_bytes()
    if entry["stage"] == "header":
        assert broken_rule(data) == entry["error"]
    elif len(data) >= 64:
        assert broken_rule(data) is None
    else:
        assert entry["stage"] == "stream"


def test_the_examples_of_the_page_are_the_golden_frames():
    page = PAGE.read_text()
    frames = json.loads((WIRE / "index.json").read_text())["frames"]
    payloads = {frame["kind"]: frame["payload"] for frame in frames if frame["kind"] != "Data"}
    examples = re.findall(r"^### \d\. (\w+)$.*?^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert {kind: json.loads(text) for kind, text in examples} == {
        kind: payload for kind, payload in payloads.items() if payload is not None
    }
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    without_remarks = [re.sub("  +.*", "", block) for language, block in blocks if not language]
    hexadecimal = ["".join(re.findall(r"\b(?:[0-9a-f]{2})+\b", block)) for block in without_remarks]
    assert (WIRE / "data_float32_checksum.bin").read_bytes().hex() in hexadecimal
    proof = next(v for v in json.loads((WIRE / "proofs.json").read_text()) if v["side"] == "client")
    assert proof["signed"] + proof["proof"] in hexadecimal
