"""Reading a configuration file: JSON with comments and trailing commas, and errors that show the place."""

import re
from pathlib import Path
from typing import Any

import rapidjson

from melissa.exceptions import ConfigurationFileError
from melissa.launcher.schema import CONFIG_PARSE_MODE

__all__ = ["read_json"]

_PARSE_ERROR = re.compile(r"Parse error at offset (\d+): (.*)", re.DOTALL)


class _Decoder(rapidjson.Decoder):
    """Collects the keys that an object has more than once: JSON lets the last one win without a word."""

    repeated_keys: list[str]

    def start_object(self) -> list[tuple[str, Any]]:
        return []

    def end_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated_keys += sorted({key for key in keys if keys.count(key) > 1})
        return result


def read_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the JSON object in the file `path`; return it, and the keys that one of its objects has twice.

    `ConfigurationFileError` says what is wrong, with line and column, and shows the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationFileError(
            f"{path}: byte {error.start} is not UTF-8 text. Is this a JSON file?"
        ) from error
    except OSError as error:
        raise ConfigurationFileError(f"{path} cannot be read: {error.strerror}.") from error
    decoder = _Decoder(parse_mode=CONFIG_PARSE_MODE)
    decoder.repeated_keys = []
    try:
        value = decoder(text)
    except rapidjson.JSONDecodeError as error:
        raise ConfigurationFileError(_describe(path, text, str(error))) from error
    if not isinstance(value, dict):
        raise ConfigurationFileError(f"{path}: a configuration is one JSON object, {{...}}; this is none.")
    return value, decoder.repeated_keys


def _describe(path: Path, text: str, message: str) -> str:
    match = _PARSE_ERROR.fullmatch(message)
    if match is None:
        return f"{path} is not valid JSON: {message}"
    # The parser counts bytes, an editor counts characters.
    before = text.encode()[: int(match[1])].decode(errors="ignore")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    lines = text.splitlines() or [""]
    shown = range(max(line - 1, 1), min(line, len(lines)) + 1)
    excerpt = "\n".join(f"{number:6} | {lines[number - 1]}" for number in shown)
    pointer = f"       | {' ' * (column - 1)}^"
    return f"{path}, line {line}, column {column}: {match[2]}\n{excerpt}\n{pointer}"
