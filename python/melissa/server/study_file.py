"""Finding the user's server class in the user's file."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from melissa.exceptions import ConfigurationFileError
from melissa.server.base_server import BaseServer

__all__ = ["import_file", "load_server_class"]


def import_file(path: Path) -> ModuleType:
    """Import a Python file; its folder stands first on ``sys.path``, so that it finds its sibling modules.

    `ConfigurationFileError` when there is no such file; what the file itself raises goes through.
    """
    if not path.is_file():
        raise ConfigurationFileError(f"server_filename: there is no file {path}")
    folder = str(path.parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    # Under its own name, so that siblings that import it get this module, unless that hides another module.
    name = path.stem if path.stem not in sys.modules else f"melissa_study_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationFileError(f"server_filename: {path} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_server_class(path: Path, class_name: str) -> type[BaseServer]:
    """Return the class `class_name` of the file `path`.

    `ConfigurationFileError` when the file has no such class, with the classes that it has, or when it is no
    server.
    """
    module = import_file(path)
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, BaseServer):
        return found
    if found is not None:
        raise ConfigurationFileError(
            f"server_class: {class_name} in {path} is no server class: derive it from TorchServer, "
            "TFServer or DeepMelissaServer"
        )
    classes = [
        name for name, _ in inspect.getmembers(module, inspect.isclass) if _.__module__ == module.__name__
    ]
    nearest = difflib.get_close_matches(class_name, classes, n=1)
    advice = f"; is {nearest[0]} meant?" if nearest else ""
    raise ConfigurationFileError(
        f"server_class: there is no class {class_name} in {path}; its classes: "
        f"{', '.join(classes) or 'none'}{advice}"
    )
