"""The configuration of a study: every key with its type, its default and its meaning.

This is the one place of each default. `melissa.launcher.config` validates a file with these models,
`melissa.launcher.rules` has the rules between keys, ``melissa-launcher --print-options`` prints the models.
"""

from typing import Annotated, Any, Literal, get_args

import rapidjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

__all__ = [
    "CONFIG_PARSE_MODE",
    "ClientConfig",
    "DlConfig",
    "LauncherConfig",
    "Section",
    "ServerConfig",
    "StudyConfig",
    "StudyOptions",
    "buffer_kind",
    "key_note",
    "section_of",
]

CONFIG_PARSE_MODE: int = rapidjson.PM_COMMENTS | rapidjson.PM_TRAILING_COMMAS
"""Value for ``rapidjson.load(fp, parse_mode=CONFIG_PARSE_MODE)``: allows comments and trailing commas."""


def _integral(value: Any) -> Any:
    """Let ``1e3`` stand for 1000: JSON has one kind of number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(_integral)]
Natural = Annotated[Whole, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Verbosity = Annotated[Whole, Field(ge=0, le=3)]
JobLimit = Annotated[Whole, Field(ge=2)]
Port = Annotated[Whole, Field(ge=0, le=65535)]
Scheduler = Literal["local", "openmpi", "slurm", "slurm-openmpi", "slurm-global", "slurm-semiglobal", "oar"]
BufferKind = Literal["FIFO", "FIRO", "Reservoir", "BatchReservoir", "SimPairedReservoir", "SimpleQueue"]
DataType = Literal["float32", "float64", "as_sent"]
Distribution = Literal["round_robin", "simulation"]
Drain = Literal["first", "all"]


class Section(BaseModel):
    """One object of the configuration. Unknown keys are kept: they belong to the user's own class."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())


def _key(meaning: str, default: Any = ..., *, old: str | None = None, otherwise: str | None = None) -> Any:
    """Declare a key: its meaning, its default, its name of 2023, and what holds when it is absent."""
    notes: dict[str, Any] = {"old": old, "otherwise": otherwise}
    return Field(default, description=meaning, json_schema_extra=notes)


class StudyOptions(Section):
    """What is simulated."""

    field_names: Annotated[list[Text], Field(min_length=1)] = _key("fields, in the order of a sample's data")
    parameter_sweep_size: Count = _key("simulations (clients) of the study")
    validation_sweep_size: Natural = _key(
        "simulations beside these, with parameters of their own, for validation: they feed valid_dataloader "
        "and never the training buffer",
        0,
    )
    nb_parameters: Natural = _key("drawn inputs per simulation")
    nb_time_steps: Count | None = _key(
        "time steps that each simulation sends",
        None,
        old="num_samples",
        otherwise="learned from the first simulation that ends",
    )
    seed: Natural = _key("of the parameters and of the training buffer", 0)
    simulation_timeout: Seconds | None = _key(
        "seconds of silence after which a connected client is dead, counted while the server reads from it; "
        "null for never",
        400.0,
    )
    crashes_before_redraw: Natural = _key("failures of a simulation before it gets fresh parameters", 1000)
    verbosity: Verbosity = _key("of the server's log: 0 errors, 1 warnings, 2 information, 3 everything", 3)
    checkpoint_interval: Seconds | None = _key("of servers that do not train", None)
    remove_client_scripts: bool = _key("remove the script of a simulation that has finished", False)
    group_size: Count = _key("simulations per client job; deep learning needs 1", 1)
    zmq_hwm: Natural | None = _key("accepted, without effect: back-pressure is exact", None)


class DlConfig(Section):
    """How the surrogate is trained. Needed by deep-learning servers only."""

    batch_size: Count = _key("samples per batch and server rank")
    buffer: BufferKind = _key("kind of training buffer; SimpleQueue is FIFO's name of 2023", "FIFO")
    buffer_size: Count = _key("capacity of the training buffer: samples per server rank")
    per_server_watermark: Natural | None = _key(
        "samples that a rank's buffer must hold before training starts; FIFO has none",
        None,
        otherwise="required, but for FIFO",
    )
    pseudo_epochs: Count = _key("times that each sample is delivered; more than 1 for FIRO only", 1)
    nb_batches_update: Count = _key(
        "batches between two validations and between two logged rates", 100, old="n_batches_update"
    )
    checkpoint_interval: Count | None = _key(
        "batches between two checkpoints", None, otherwise="as nb_batches_update"
    )
    distribution: Distribution = _key(
        'how samples spread over server ranks: "round_robin" sends time step t of simulation s to rank '
        '(t + s) mod ranks, "simulation" all steps of a simulation to rank s mod ranks',
        "round_robin",
    )
    drain: Drain = _key(
        'when training ends on several ranks: "first", on all as soon as one has no batch; "all", when '
        "every sample is trained (torch only)",
        "first",
    )
    setup_slurm_ddp: bool = _key("take the ranks of data-parallel training from Slurm's environment", False)
    tensorboard: bool = _key("write TensorBoard logs", True)
    data_type: DataType = _key("what the buffer holds of floating-point fields", "float32")
    check_loss: bool = _key("end the study when a loss is NaN or infinite", True)
    convert_log_to_df: bool = _key("write the TensorBoard scalars as a pickled DataFrame, too", False)
    get_buffer_statistics: bool = _key("mean and standard deviation of the inputs in the buffer", False)
    zmq_hwm: Natural | None = _key("accepted, without effect: back-pressure is exact", None)


class LauncherConfig(Section):
    """How jobs are started and watched."""

    scheduler: Scheduler = _key("what starts the jobs", "local")
    scheduler_arg: list[str] = _key("raw arguments for server and clients; local ignores them", [])
    scheduler_arg_server: list[str] = _key("raw arguments for the server; local ignores them", [])
    scheduler_arg_client: list[str] = _key("raw arguments for the clients; local ignores them", [])
    scheduler_server_command: str | None = _key("wrapper put before the server's command", None)
    scheduler_server_command_options: list[str] = _key("options of the server's wrapper", [])
    scheduler_client_command: str | None = _key("wrapper put before each client's script", None)
    scheduler_client_command_options: list[str] = _key("options of the clients' wrapper", [])
    job_limit: JobLimit | None = _key(
        "jobs alive at once, the server included",
        None,
        otherwise="what keeps the cores busy where all runs on this machine, else 1000",
    )
    timer_delay: Seconds = _key("seconds between two polls of job states", 5.0)
    server_timeout: Seconds = _key("seconds between two pings; twice that without one is death", 60.0)
    stop_timeout: Seconds = _key(
        "seconds that a server which is stopped has for its training step and the checkpoint that follows",
        300.0,
    )
    fault_tolerance: bool = _key("run again what failed", True)
    std_output: bool = _key("keep the output of jobs under stdout/", True)
    verbosity: Verbosity = _key("of the launcher's log: 0 errors, 1 warnings, 2 information, 3 everything", 3)
    http_bind: Text = _key("address of the monitor", "127.0.0.1")
    http_port: Port | None = _key("port of the monitor", None, otherwise="a free one")
    http_token: str | None = _key("token of the monitor", None, otherwise="a random one")


class ClientConfig(Section):
    """The solver."""

    executable_command: Text = _key("command of the solver; the drawn parameters are appended")
    command_default_args: list[str | int | float] = _key("arguments before the parameters", [])
    preprocessing_commands: list[str] = _key("shell commands before the solver, in its shell", [])


class ServerConfig(Section):
    """The server's job."""

    preprocessing_commands: list[str] = _key("shell commands before the server, in its shell", [])


class StudyConfig(Section):
    """A whole configuration."""

    server_filename: Text = _key("Python file with the server class")
    server_class: Text = _key("name of the server class in that file")
    output_dir: Text = _key(
        "folder of all results, made when absent; may have strftime codes", "melissa-%Y%m%dT%H%M%S"
    )
    ignore_client_death: bool = _key("drop a failed simulation and go on", False)
    study_options: StudyOptions = _key("what is simulated")
    dl_config: DlConfig | None = _key(
        "how the surrogate is trained", None, otherwise="required by deep-learning servers"
    )
    launcher_config: LauncherConfig = _key("how jobs are started and watched", LauncherConfig())
    client_config: ClientConfig = _key("the solver")
    server_config: ServerConfig = _key("the server's job", ServerConfig())


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the model of a key that is itself an object, None for a plain value."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def key_note(field: FieldInfo, name: Literal["old", "otherwise"]) -> str | None:
    """Return a key's name of 2023 (``old``), or in words what holds when it is absent (``otherwise``)."""
    notes = field.json_schema_extra
    note = notes.get(name) if isinstance(notes, dict) else None
    return note if isinstance(note, str) else None


def buffer_kind(name: str) -> str:
    """Return today's name of a training buffer: ``SimpleQueue``, of 2023, is a ``FIFO``."""
    return "FIFO" if name == "SimpleQueue" else name
