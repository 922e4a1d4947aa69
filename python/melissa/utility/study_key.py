"""The study key: 32 random bytes, handed to jobs in a file that only their user can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from melissa.exceptions import AuthenticationError

KEY_SIZE = 32


def create_study_key(path: Path) -> bytes:
    """Make a key and write it to `path` in hex, mode 0600 from the start; an older file there is replaced."""
    key = secrets.token_bytes(KEY_SIZE)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(key.hex())
    return key


def read_study_key(path: str | Path) -> bytes:
    """Return the key in the file `path`; `AuthenticationError` if it holds none, `OSError` if unreadable."""
    text = Path(path).read_text(encoding="ascii", errors="replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise AuthenticationError(
            f"{path} does not hold a study key: {2 * KEY_SIZE} hexadecimal digits were expected"
        )
    return key
