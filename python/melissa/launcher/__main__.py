"""``melissa-launcher``: run a study, or say what it would be."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import melissa
from melissa.exceptions import ConfigurationFileError, MelissaError, UnsupportedConfiguration
from melissa.launcher.config import load_config
from melissa.launcher.example import copy_example, example_names, next_steps
from melissa.launcher.options import print_options
from melissa.scheduler.factory import nb_server_ranks
from melissa.utility.logger import configure_logger
from melissa.utility.process import find_own_interpreter_first

__all__ = ["main"]

CONFIGURATION_ERROR = 2
INTERRUPTED = 130

_EPILOG = """\
A first study, from nothing to a trained surrogate in a few minutes:

    melissa-launcher --example heat-pde my-study
    cd my-study
    melissa-launcher --config_name config_heat.json

Keys of the configuration: melissa-launcher --print-options
A study that has not finished goes on when it is started again with the same output folder.
Exit status: 0 the study has finished; 1 it failed; 2 the configuration or the command line is wrong.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``melissa-launcher`` with the arguments, by default the process's own; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return _run(parser, options)
    except MelissaError as error:
        print(f"melissa-launcher: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR if isinstance(error, ConfigurationFileError) else 1
    except KeyboardInterrupt:
        print("melissa-launcher: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="melissa-launcher",
        description="Run a study: an ensemble of simulations, and a model that trains while they run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    study = parser.add_argument_group("the study")
    study.add_argument(
        "-c",
        "--config",
        "--config_name",
        dest="config_name",
        metavar="NAME",
        help="the study's configuration: a JSON file, by its path or its name, with or without .json",
    )
    study.add_argument(
        "--project_dir",
        type=Path,
        metavar="DIR",
        help="where relative paths of the configuration start (default: its folder)",
    )
    study.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew in the output folder of an earlier study; its own files are removed, others stay",
    )
    study.add_argument(
        "--dry-run",
        action="store_true",
        help="check the configuration, say what would be run, and end",
    )
    study.add_argument(
        "--fast-dev-run",
        action="store_true",
        help="try the study in small, beside its output folder: one client, two batches, one validation; "
        "then say what time and memory the whole would take",
    )
    study.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say more on the terminal: -v what is going on, -vv everything",
    )
    instead = parser.add_argument_group("instead of a study").add_mutually_exclusive_group()
    instead.add_argument(
        "--print-options",
        action="store_true",
        help="print every key of a configuration: type, default, meaning",
    )
    instead.add_argument(
        "--example",
        nargs=2,
        metavar=("NAME", "DIR"),
        help="write a copy of an example into the folder DIR",
    )
    instead.add_argument("--list-examples", action="store_true", help="print the names of the examples")
    instead.add_argument("--version", action="store_true", help="print the version")
    return parser


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.version:
        print(f"melissa-launcher {melissa.__version__}")
        return 0
    if options.print_options:
        print_options(Console())
        return 0
    if options.list_examples:
        print("\n".join(example_names()))
        return 0
    if options.example is not None:
        name, folder = options.example[0], Path(options.example[1])
        files = copy_example(name, folder)
        steps = next_steps(name, folder)
        print(f"The example {name} is in {folder}: {len(files)} files. To run it:\n\n{steps}\n")
        return 0
    if options.config_name is None:
        parser.error("which study? Name its configuration with --config_name, or try --example heat-pde DIR")
    if options.project_dir is not None and not options.project_dir.is_dir():
        parser.error(f"--project_dir {options.project_dir}: there is no such folder")

    verbosity = 1 + options.verbose
    configure_logger(None, verbosity, terminal=True)
    find_own_interpreter_first()
    config, config_path, project_dir = load_config(options.config_name, options.project_dir)
    if options.dry_run:
        print(_summary(config, config_path, project_dir))
        return 0

    if options.fast_dev_run:
        return _fast_dev_run(config, config_path, project_dir, verbosity)

    from melissa.launcher.launcher import Launcher

    return Launcher(
        config,
        config_path=config_path,
        project_dir=project_dir,
        output_dir=Path(config["output_dir"]),
        overwrite=options.overwrite,
        terminal_verbosity=verbosity,
    ).run()


def _fast_dev_run(config: dict[str, Any], config_path: Path, project_dir: Path, verbosity: int) -> int:
    """Run the study in small; print what follows for the whole."""
    if config.get("dl_config") is None:
        raise UnsupportedConfiguration(f"{config_path} has no dl_config: a fast dev run is one of training")
    from melissa.launcher.fast_dev_run import FAST_DEV_RUN, projection_table, shortened
    from melissa.launcher.launcher import Launcher

    short = shortened(config)
    short["output_dir"] += "-dev"
    launcher = Launcher(
        short,
        config_path=config_path,
        project_dir=project_dir,
        output_dir=Path(short["output_dir"]),
        overwrite=True,
        terminal_verbosity=verbosity,
        environment={FAST_DEV_RUN: "1"},
    )
    status = launcher.run()
    if "fast_dev_run" in launcher.report:
        Console().print(projection_table(config, launcher.report["fast_dev_run"]))
    return status


def _summary(config: dict[str, Any], config_path: Path, project_dir: Path) -> str:
    """Say in a few lines what the study would run."""
    study, client, launcher = config["study_options"], config["client_config"], config["launcher_config"]
    simulations, steps = study["parameter_sweep_size"], study["nb_time_steps"]
    drawn = f"<{study['nb_parameters']} drawn parameters>"
    solver = [client["executable_command"], *map(str, client["command_default_args"]), drawn]
    server = ["melissa-server", "--project_dir", str(project_dir), "--config_name", str(config_path)]
    samples = f"{simulations} simulations"
    if steps is not None:
        samples += f" x {steps} time steps = {simulations * steps} samples"
    nb_ranks = nb_server_ranks(launcher)
    ranks = f", {nb_ranks} ranks" if nb_ranks != 1 else ""
    lines = [
        ("output", config["output_dir"]),
        ("scheduler", f"{launcher['scheduler']}, {launcher['job_limit']} jobs at once, the server included"),
        ("server", _shell_line(config["server_config"]["preprocessing_commands"], shlex.join(server))),
        ("class", f"{config['server_class']} of {config['server_filename']}{ranks}"),
        ("client", _shell_line(client["preprocessing_commands"], " ".join(solver))),
        ("ensemble", f"{samples}; fields: {', '.join(study['field_names'])}"),
    ]
    if (training := config.get("dl_config")) is not None:
        watermark = training["per_server_watermark"]
        buffer = f"{training['buffer']} of {training['buffer_size']} samples"
        buffer += "" if watermark is None else f", training starts at {watermark}"
        on_each = " on each rank" if nb_ranks != 1 else ""
        lines.append(("training", f"batches of {training['batch_size']} from a {buffer}{on_each}"))
    return "\n".join([f"{config_path} is valid. A study would have:", *(f"  {k:10}{v}" for k, v in lines)])


def _shell_line(preprocessing: list[str], command: str) -> str:
    return "; ".join([*preprocessing, command])


if __name__ == "__main__":
    sys.exit(main())
