"""What the user's file says before it is imported: which classes its server derives from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["derives_from"]


@dataclass
class _Source:
    """Classes of the user's files with the names of their bases, other names of imported ones, all names."""

    bases: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def derives_from(path: Path, class_name: str, wanted: str) -> bool:
    """Say whether the class `class_name` of a Python file derives from one that is called `wanted`.

    The file is read, not run, and so are the modules beside it that it imports. Where the class cannot be
    found in this way (it may be made by a call), it counts that the name `wanted` is in one of them. A file
    that is not there, or is no Python, derives from nothing: who imports it will say so.
    """
    source = _Source()
    _read(path, source, set())
    if class_name not in source.bases:
        return wanted in source.names
    seen: set[str] = set()
    waiting = [class_name]
    while waiting:
        name = waiting.pop()
        name = source.aliases.get(name, name)
        if name == wanted:
            return True
        if name not in seen:
            seen.add(name)
            waiting += source.bases.get(name, [])
    return False


def _read(path: Path, source: _Source, done: set[Path]) -> None:
    """Add to `source` what the file says, and the modules beside it that it imports."""
    if path in done or not path.is_file():
        return
    done.add(path)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            source.bases[node.name] = [name for base in node.bases if (name := _last_name(base))]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                source.names.add(alias.name.rpartition(".")[2])
                if alias.asname:
                    source.aliases[alias.asname] = alias.name.rpartition(".")[2]
            for module in _imported(node):
                for place in (path.parent / f"{module}.py", path.parent / module / "__init__.py"):
                    _read(place, source, done)
        elif isinstance(node, ast.Name | ast.Attribute):
            source.names.add(_last_name(node))


def _last_name(node: ast.expr) -> str:
    """Return ``C`` of ``C``, ``module.C`` and ``C[T]``; nothing of other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return _last_name(node.value) if isinstance(node, ast.Subscript) else ""


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Return the modules that an import may load, as paths relative to the importing file's folder."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    else:
        modules = [node.module] if node.module else []
        modules += [f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names]
    return (module.replace(".", "/") for module in modules)
