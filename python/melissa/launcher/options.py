"""The keys of a configuration in words: for ``melissa-launcher --print-options`` and for error messages."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import rapidjson
from annotated_types import Ge, Gt, Le, MinLen
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from melissa.launcher.schema import Section, StudyConfig, key_note, section_of

__all__ = ["Option", "expectation", "options", "print_options"]


@dataclass(frozen=True)
class Option:
    """One key of the configuration, described."""

    path: str
    kind: str
    default: str
    meaning: str


def options(model: type[Section] = StudyConfig, prefix: str = "") -> Iterator[Option]:
    """Yield every key, in the order of the schema; a section is followed by its keys."""
    for name, field in model.model_fields.items():
        meaning = field.description or ""
        if (old := key_note(field, "old")) is not None:
            meaning += f" (2023: {old})"
        yield Option(prefix + name, expectation(field), _default(field), meaning)
        if (section := section_of(field)) is not None:
            yield from options(section, f"{prefix}{name}.")


def print_options(console: Console) -> None:
    """Print every key: as a table on a terminal, elsewhere as plain text, one paragraph per key."""
    if not console.is_terminal:
        for option in options():
            console.file.write(f"{option.path}\n")
            console.file.write(f"    {option.kind}; default: {option.default}\n    {option.meaning}\n")
        return
    table = Table(title="Keys of a study's configuration", title_justify="left", show_lines=False)
    for heading in ("key", "type", "default", "meaning"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "key")
    for option in options():
        if option.kind == "an object":
            table.add_section()
        table.add_row(option.path, option.kind, option.default, option.meaning)
    console.print(table)


def expectation(field: FieldInfo, *, of_items: bool = False) -> str:
    """Return what a valid value of the key is, or of its list's items: ``a whole number, at least 1``."""
    if of_items and get_origin(field.annotation) is list:
        return _describe(get_args(field.annotation)[0], [])
    return _describe(field.annotation, field.metadata)


def _default(field: FieldInfo) -> str:
    if (otherwise := key_note(field, "otherwise")) is not None:
        return otherwise
    if field.is_required():
        return "required"
    if section_of(field) is not None:
        return "its keys' defaults"
    return str(rapidjson.dumps(field.default))


def _describe(annotation: Any, constraints: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        nested = [
            c for item in arguments[1:] for c in (item.metadata if isinstance(item, FieldInfo) else [item])
        ]
        return _describe(arguments[0], nested + constraints)
    if origin in (Union, UnionType):
        kinds = [_describe(kind, constraints) for kind in arguments if kind is not type(None)]
        return " or ".join(kinds) + (", or null" if type(None) in arguments else "")
    if origin is Literal:
        return "one of " + ", ".join(str(rapidjson.dumps(choice)) for choice in arguments)
    if origin is list:
        items = "strings and numbers" if len(get_args(arguments[0])) > 2 else "strings"
        return f"a list of {items}" + _bounds(constraints)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "an object"
    kinds_by_type = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return kinds_by_type[annotation] + _bounds(constraints)


def _bounds(constraints: list[Any]) -> str:
    text = ""
    for constraint in constraints:
        match constraint:
            case Ge(ge=bound):
                text += f", at least {bound}"
            case Gt(gt=bound):
                text += f", above {bound}"
            case Le(le=bound):
                text += f", at most {bound}"
            case MinLen():
                text += ", not empty"
    return text
