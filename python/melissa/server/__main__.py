"""``melissa-server``: loads the user's class and runs its study. The launcher starts it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from pathlib import Path

import melissa
from melissa.exceptions import MelissaError
from melissa.launcher.config import load_config
from melissa.launcher.fast_dev_run import is_fast_dev_run, shortened
from melissa.server.base_server import BaseServer
from melissa.server.communicator import make_communicator, number_of_ranks, process_rank
from melissa.server.ending import StudyEnding, StudyInterrupted
from melissa.server.environment import StudyEnvironment
from melissa.server.failure import Team, report_failure
from melissa.server.link import Link, launcher_link
from melissa.server.ranks.deadline import leave_at_once
from melissa.server.ranks.joining import Ranks, server_ranks
from melissa.server.roll_call import launched_rank
from melissa.server.signals import SignalWatch
from melissa.server.study_file import load_server_class
from melissa.server.study_source import derives_from
from melissa.utility.logger import configure_logger

__all__ = ["main", "watch_threads"]

logger = logging.getLogger("melissa")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="melissa-server",
        description="The server of a study. The launcher starts it: see melissa-launcher --help.",
    )
    parser.add_argument("--project_dir", help="folder at which relative paths of the configuration start")
    parser.add_argument(
        "--config_name", required=True, help="the configuration: a name in that folder, or a path"
    )
    parser.add_argument("--version", action="version", version=f"melissa-server {melissa.__version__}")
    return parser.parse_args(arguments)


def _configure_log(environment: StudyEnvironment, verbosity: int, rank: int) -> None:
    file = environment.output_dir / f"melissa_server_{rank}.log"
    configure_logger(file, verbosity, terminal=rank == 0)


def _make_server(
    options: argparse.Namespace, environment: StudyEnvironment, ranks: Ranks | None
) -> BaseServer:
    config, _, _ = load_config(options.config_name, options.project_dir, output_dir=environment.output_dir)
    if is_fast_dev_run():
        config = shortened(config)
    _configure_log(environment, config["study_options"]["verbosity"], process_rank())
    path, class_name = Path(config["server_filename"]), config["server_class"]
    if derives_from(path, class_name, "TFServer"):
        # TensorFlow wants to know its ranks before anything is done with it: in the user's file, say.
        from melissa.server.deep_learning.tf_ranks import tensorflow_ranks

        tensorflow_ranks(make_communicator(check=None if ranks is None else ranks.check), config)
    server_class = load_server_class(path, class_name)
    # A class's constructor takes the configuration; the page's other argument has a default.
    return server_class(config)


def watch_threads(ending: StudyEnding, link: Link | None, ranks: Team | None = None) -> None:
    """See to it that no thread dies without a word; the death of one of the server's own ends the study."""

    def died(arguments: threading.ExceptHookArgs) -> None:
        error, thread = arguments.exc_value, arguments.thread
        name = "unknown" if thread is None else thread.name
        if error is None:
            return
        logger.error(f"thread {name} died of {type(error).__name__}: {error}", exc_info=error)
        if name.startswith("melissa-"):
            ending.fail(error)
            report_failure(error, link, ranks)

    threading.excepthook = died


def main(arguments: list[str] | None = None) -> int:
    """Run a server; return its exit status."""
    options = _arguments(arguments)
    try:
        environment = StudyEnvironment.read()
    except MelissaError as error:
        print(f"melissa-server: {error}", file=sys.stderr)
        return 1
    signals = SignalWatch()
    link: Link | None = None
    ranks: Ranks | None = None
    try:
        if number_of_ranks() > 1 and (launched := launched_rank()) is not None:
            # MPI knows its ranks when all have come: until then the log needs a name, too.
            _configure_log(environment, 3, launched)
        _configure_log(environment, 3, process_rank())
        link = launcher_link()
        # Before the user's code: what fails there on one rank ends all.
        ranks = server_ranks(link)
        if ranks is not None:
            signals.give_up = ranks.leave
        os.chdir(environment.output_dir)
        server = _make_server(options, environment, ranks)
        signals.attach(server._ending)
        watch_threads(server._ending, link, ranks)
        server.start()
    except StudyInterrupted as interruption:
        logger.info(f"the server ends before the study has begun: {interruption}")
        if ranks is not None:
            ranks.leave(interruption)
        return _leave(interruption.status, ranks)
    except BaseException as error:
        # SystemExit of the user's code as well: a server that leaves without a word would hang the study.
        report_failure(error, link, ranks)
        return _leave(1, ranks)
    return server.exit_status


def _leave(status: int, ranks: Ranks | None) -> int:
    """End after a failure: one of several ranks leaves without MPI's farewell, to which some may not come."""
    if ranks is not None:
        ranks.end()
    if number_of_ranks() > 1:
        leave_at_once(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
