"""Mistakes in the user's class: the traceback stands on the launcher's terminal within seconds, all ends."""

import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from studies import Study

IN_A_METHOD = """
class Server(PlainServer):
    def {name}(self, {arguments}):
        raise ValueError("a mistake in {name}")
"""
ARGUMENTS = {
    "__init__": "config_dict",
    "prepare_training_attributes": "",
    "process_simulation_data": "data, config_dict",
    "process_simulation_batch": "batch, config_dict",
    "draw_parameters": "",
    "training_step": "batch, batch_idx",
    "validation_step": "batch, valid_batch_idx, batch_idx",
    "on_train_start": "",
    "on_train_end": "",
    "on_batch_start": "batch_idx",
    "on_batch_end": "batch_idx",
    "on_validation_start": "batch_idx",
    "on_validation_end": "batch_idx",
    "checkpoint": 'batch_idx, path="checkpoints"',
}
METHODS = {name: IN_A_METHOD.format(name=name, arguments=ARGUMENTS[name]) for name in ARGUMENTS}
WITH_VALIDATION = """
    def on_train_start(self):
        self.valid_dataloader = ["a validation batch"]
"""
OTHERS = {
    "import": """
        import module_of_nobody


        class Server(PlainServer): pass
        """,
    "syntax": """
        class Server(PlainServer)
            pass
        """,
    "bounds": """
        class Server(PlainServer):
            def __init__(self, config_dict):
                super().__init__(config_dict)
                uniform = ParameterSamplerType.RANDOM_UNIFORM
                self.set_parameter_sampler(uniform, l_bounds=[1, 1], u_bounds=[2, 0])
        """,
    "bounds of another length": """
        class Server(PlainServer):
            def __init__(self, config_dict):
                super().__init__(config_dict)
                uniform = ParameterSamplerType.RANDOM_UNIFORM
                self.set_parameter_sampler(uniform, l_bounds=[1, 1, 1], u_bounds=[2])
        """,
    "exit": """
        class Server(PlainServer):
            def training_step(self, batch, batch_idx):
                raise SystemExit("the user has seen enough")
        """,
    "no hooks": """
        from melissa.server.deep_learning.torch_server import TorchServer


        class Server(TorchServer): pass
        """,
}
# These fail only when all is over; the solvers of the others wait for ever with their steps sent.
AT_THE_END = {"on_train_end"}
HELD = "declare(); send(0, 1, 2, 3, 4); wait_for('never')"


class Failed:
    """A study that has ended by a mistake, and what stood on the terminal."""

    def __init__(self, folder, name):
        self.study = Study(folder)
        self.study.configure({"dl_config.nb_batches_update": 1})
        self.study.solver("solve(5)" if name in AT_THE_END else HELD)
        code = METHODS.get(name) or textwrap.dedent(OTHERS[name])
        if "valid" in name:
            code += WITH_VALIDATION
        self.study.server(code)
        self.terminal = self.study.fail()


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Return all the studies by the name of their mistake; they run side by side, for they mostly wait."""
    names = [*METHODS, *OTHERS]
    folders = [tmp_path_factory.mktemp(name.replace(" ", "_")) for name in names]
    with ThreadPoolExecutor(max_workers=3) as pool:
        return dict(zip(names, pool.map(Failed, folders, names), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_an_exception_in_a_method_of_the_user_s_class_is_shown_with_its_traceback(failed, name):
    study, terminal = failed[name].study, failed[name].terminal
    terminal = terminal[terminal.index("error: the server failed with") :]
    assert f'File "{study.project}/server.py", line ' in terminal
    assert f"in {name}\n" in terminal
    assert f"ValueError: a mistake in {name}" in terminal
    assert terminal.count("Traceback (most recent call last):") == 1
    assert "melissa/server/" not in terminal
    assert f"a mistake in {name}" in study.server_log


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith(("__", "prepare", "draw"))])
def test_what_was_received_before_the_mistake_stands_in_the_report(failed, name):
    failed[name].study.balance()
    assert failed[name].study.server_log.endswith("Server finalizing with status 1\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("import", ["No module named 'module_of_nobody'", "server.py", "import module_of_nobody"]),
        ("syntax", ["SyntaxError", "server.py", "class Server(PlainServer)"]),
        ("bounds", ["parameter 1 has l_bounds 1.0 above u_bounds 0.0", "server.py", "in __init__"]),
        (
            "bounds of another length",
            ["l_bounds: an array of shape (3,)", "expected 2", "server.py", "in __init__"],
        ),
        ("exit", ["SystemExit", "the user has seen enough", "training_step"]),
        ("no hooks", ["Server", "server.py", "prepare_training_attributes", "training_step"]),
    ],
)
def test_other_mistakes_are_shown_where_they_are(failed, name, words):
    for word in words:
        assert word in failed[name].terminal
