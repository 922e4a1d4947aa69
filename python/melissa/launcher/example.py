"""The examples that come with the package, and copying one of them to where a user can run and change it."""

import difflib
import filecmp
import importlib.util
import shutil
from pathlib import Path

from melissa.exceptions import MelissaError

__all__ = ["ExampleError", "copy_example", "example_names", "next_steps"]

EXAMPLES = Path(__file__).parent.parent / "examples"

NEEDS = {"heat-jax": ("jax", ("jax",)), "heat-tensorflow": ("tensorflow", ("tensorflow",))}
"""Extras of the package that an example needs, and the modules that show whether they are there."""


class ExampleError(MelissaError):
    """An example is not there, or cannot be copied to the folder that was named."""


def example_names() -> list[str]:
    """Return the names of the examples that this installation has."""
    return sorted(path.name for path in EXAMPLES.glob("*") if any(path.glob("*.json")))


def copy_example(name: str, folder: Path) -> list[Path]:
    """Copy the example `name` into `folder`, which is made; return the files of the example there.

    A folder that has this example already, unchanged, is left as it is. `ExampleError` is raised for an
    unknown name and for any other folder that is not empty.
    """
    if name not in example_names():
        nearest = difflib.get_close_matches(name, example_names(), n=1)
        advice = f'Is "{nearest[0]}" meant?' if nearest else f"There are: {', '.join(example_names())}."
        raise ExampleError(f'There is no example "{name}". {advice}')
    source = EXAMPLES / name
    files = _files(source)
    if folder.exists() and not folder.is_dir():
        raise ExampleError(f"{folder} is there and is no folder.")
    if folder.is_dir() and any(folder.iterdir()):
        for file in files:
            if not (folder / file).is_file():
                raise ExampleError(f"{folder} is not empty, and has no {file}. Name another folder.")
            if not filecmp.cmp(source / file, folder / file, shallow=False):
                raise ExampleError(f"{folder / file} is there and was changed. Name another folder.")
    else:
        try:
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, folder / file)
        except OSError as error:
            raise ExampleError(f"{error.filename} cannot be written: {error.strerror}.") from error
    return [folder / file for file in files]


def _files(source: Path) -> list[Path]:
    """Return the example's files, relative to its folder, without what running it in place leaves behind."""
    files = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
    return sorted(
        file
        for file in files
        if not any(part == "__pycache__" or part.startswith("melissa-20") for part in file.parts)
    )


def next_steps(name: str, folder: Path) -> str:
    """Return what to type to run the example `name` in `folder`, and to install first what is not there."""
    configuration = min(folder.glob("*.json"))
    lines = [f"cd {folder}", f"melissa-launcher --config_name {configuration.name}"]
    extras, modules = NEEDS.get(name, ("torch,examples", ("torch", "matplotlib")))
    if any(importlib.util.find_spec(module) is None for module in modules):
        lines.insert(0, f'pip install "melissa-dl[{extras}]"')
    return "\n".join(f"    {line}" for line in lines)
