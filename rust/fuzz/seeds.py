"""Writes what is under tests/data/wire as inputs of the fuzz targets: `seeds.py CORPUS_FOLDER`.

Each target has its own form of input, which the head of its file describes.
"""

import sys
from pathlib import Path

WIRE = Path(__file__).parents[2] / "tests" / "data" / "wire"
HEADER = 64
# The kind of a frame to the first byte of an input of `handshake`.
MESSAGES = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6}
# Server ranks of an input of `session`, by its first byte; in the last world a simulation goes to one of two.
ALONE, TWO, THREE, BY_SIMULATION = range(4)
# Operations, by their first byte, and peers, by their second: those of the next server rank lie PEERS higher.
BRING, RAW, SEALED, DATA, CHANGED, PART, FINALIZE, CLOSE, CONTROL = 0, 2, 3, 4, 6, 8, 9, 10, 11
STRANGER, ONE, FIRST, SECOND, AGAIN, PEERS = range(6)
# What the control plane does with the simulation of one rank.
REDRAW, REGISTER, CONFIRM = 0, 2, 10
CONNECTED, CHALLENGED, ACCEPTED, JOINED, WELCOMED = range(5)


def sent(operation: int, peer: int, data: bytes) -> bytes:
    """Let a peer send these bytes."""
    data = data[:65535]
    return bytes([operation, peer]) + len(data).to_bytes(2, "little") + data


def bring(peer: int, stage: int) -> bytes:
    """Let a peer go on honestly as far as this."""
    return bytes([BRING, peer, stage])


def on_several_ranks() -> dict[str, bytes]:
    """Sequences of one client on two server ranks: name to input."""
    other = ONE + PEERS
    joined = bring(ONE, WELCOMED) + bring(other, WELCOMED) + bytes([DATA, ONE, 4, DATA, other, 4])
    finalized, finalized_there = bytes([FINALIZE, ONE, 0]), bytes([FINALIZE, other, 0])
    registered = bytes([CONTROL, ONE, REGISTER, CONTROL, other, REGISTER])
    redrawn = bytes([CONTROL, ONE, REDRAW, CONTROL, other, REDRAW])
    confirmed = bytes([CONTROL, ONE, CONFIRM, CONTROL, other, CONFIRM])
    died_between = joined + finalized + bytes([CLOSE, other, 2])
    again = joined + finalized + finalized_there + confirmed
    return {
        "finished_and_confirmed": joined + finalized + finalized_there + confirmed + bring(ONE, WELCOMED),
        "confirmed_too_early": joined + confirmed + finalized + confirmed,
        "opened_again": died_between + registered + again,
        "opened_again_for_other_parameters": died_between + redrawn + again,
        "opened_again_after_the_confirmation": died_between + confirmed + registered + again,
        "finalized_with_other_numbers": joined + bytes([FINALIZE, ONE, 1, FINALIZE, other, 0]) + confirmed,
    }


def behaviours() -> dict[str, bytes]:
    """Sequences that no single frame is: name to input."""
    both = bring(FIRST, JOINED) + bring(SECOND, JOINED)
    one = bring(ONE, WELCOMED)
    torn = one + bytes([PART, ONE, 90, 255])
    stop, finalize = bytes([CONTROL, ONE, 255]), bytes([FINALIZE, ONE, 0])
    largest = bytes([18, *[255] * 8, 3])  # eight bytes of 255 at the time step of a header
    return {
        "steps": one + bytes([DATA, ONE, 7, FINALIZE, ONE, 0]),
        "two_ranks": both + bytes([DATA, FIRST, 4, DATA, SECOND, 6, FINALIZE, FIRST, 0, FINALIZE, SECOND, 0]),
        "torn_body": one + bytes([DATA, ONE, 1, PART, ONE, 80, 255, CLOSE, ONE, 1]),
        "reset_of_a_rank": both + bytes([DATA, FIRST, 2, CLOSE, FIRST, 1, DATA, SECOND, 2]),
        "step_of_the_largest_number": one + bytes([CHANGED, ONE]) + largest,
        "finalize_of_the_largest_number": one + bytes([FINALIZE, ONE, 2]),
        "another_attempt_within_a_body": torn + bytes([CONTROL, ONE, 2]) + one + bytes([DATA, ONE, 2]),
        "connected_twice": one + bring(AGAIN, WELCOMED) + bytes([DATA, ONE, 2, DATA, AGAIN, 2]),
        "stop_within_a_body": torn + stop + finalize + finalize,
    }


def main(corpus: Path) -> None:
    """Write one folder of inputs per target."""
    frames = sorted(WIRE.glob("**/*.bin"))
    if len(frames) < 50:
        sys.exit(f"{WIRE} has {len(frames)} frames only")
    sequences = {
        f"{name}_in_world_{world}": bytes([world]) + sequence
        for world in (ALONE, TWO, THREE, BY_SIMULATION)
        for name, sequence in (behaviours() if world == ALONE else on_several_ranks()).items()
    }
    seeds: dict[str, dict[str, bytes]] = {"header": {}, "handshake": {}, "session": sequences}
    for path in frames:
        data, name = path.read_bytes(), path.stem
        if len(data) >= HEADER:
            seeds["header"][name] = data[:HEADER]
        if len(data) >= HEADER and data[6] in MESSAGES:
            seeds["handshake"][name] = bytes([MESSAGES[data[6]]]) + data[HEADER:]
        seeds["session"][f"{name}_stranger"] = bytes([ALONE]) + sent(RAW, STRANGER, data)
        for stage in CHALLENGED, ACCEPTED, WELCOMED:
            there = bring(ONE + PEERS, stage) + sent(SEALED, ONE + PEERS, data)
            seeds["session"][f"{name}_{stage}"] = bytes([ALONE]) + bring(ONE, stage) + sent(SEALED, ONE, data)
            seeds["session"][f"{name}_{stage}_on_rank_1"] = bytes([TWO]) + there
    for target, inputs in seeds.items():
        folder = corpus / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / f"seed_{name}").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
