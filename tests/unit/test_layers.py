"""Imports point down only and in no circle, only a mode knows itself, nobody imports torch who must not, and what is
never used is never used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import house
import pytest
from house import BASE, LAYERS, layer_of

import p2ptrain
from p2ptrain.modes.registry import MODES

PACKAGE = Path(p2ptrain.__file__).parent
FORBIDDEN = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "torch.load", "torch.save")
READS_WEIGHTS = "p2ptrain.learning.initial"
"""The one place that reads a person's own ``.pth``: tensors alone."""
NETWORK = (
    "socket",
    "ssl",
    "zmq",
    "zeroconf",
    "http",
    "urllib",
    "requests",
    "httpx",
    "aiohttp",
    "smtplib",
    "ftplib",
    "xmlrpc",
)
SPEAKS = ("p2ptrain.net.", "p2ptrain.runtime.doctor.", "p2ptrain.runtime.trainer.process", "p2ptrain.web.server")
"""To other peers, to whoever asks for the page, and a node to its own trainer."""
LOOKS_FOR_PORTS = "p2ptrain.experiment.processes"
TORCH_FREE = ("cli", "ui", "simulation", "runtime", "modes", "core", "net", "planning", "protocol", "wire", "base")
TORCH_MODULES = (
    "p2ptrain.runtime.trainer.looking",
    "p2ptrain.runtime.trainer.trainer",
    "p2ptrain.modes.pipeline.worker",
    "p2ptrain.modes.split.averages",
    "p2ptrain.modes.split.worker",
    "p2ptrain.modes.stages.messages",
    "p2ptrain.modes.stages.own_blocks",
    "p2ptrain.modes.tasks.worker",
    "p2ptrain.modes.tasks.parts",
    "p2ptrain.modes.tasks.training",
    "p2ptrain.modes.tasks.averaging.outer",
    "p2ptrain.modes.tasks.head.fitting",
    "p2ptrain.cli.model.evaluate",
)
"""Of those layers, the only ones that may import torch at their top."""
MODE_NAMES = {*MODES, *(old for mode in MODES.values() for old in mode.old_names)}
TOO_FULL: set[str] = set()
TOO_LONG: set[str] = set()
"""Folders and files that do not fit yet."""
MAY_BE_LONG = ("wire/messages.py",)
"""A list of all messages."""
LIGHT = (
    "p2ptrain",
    "p2ptrain.api",
    "p2ptrain.runtime.node.peer_node",
    "p2ptrain.runtime.harvest",
    "p2ptrain.cli.main",
    "p2ptrain.cli.status",
    "p2ptrain.cli.watch",
    "p2ptrain.cli.peer",
    "p2ptrain.cli.doctor",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in MODULES.items()}


def imports(module: str, *, typing: bool = True) -> Iterator[tuple[str, int, bool]]:
    return house.imports(TREES, module, typing=typing)


def made_up(**modules: str) -> dict[str, ast.Module]:
    """A tree of modules by their names without the package's, ``__`` for each dot."""
    return {f"p2ptrain.{name.replace('__', '.')}": ast.parse(text) for name, text in modules.items()}


def test_every_module_has_a_layer() -> None:
    assert {layer_of(module) for module in MODULES} - {None} <= set(LAYERS)


def test_imports_point_down() -> None:
    assert house.upward(TREES) == []


@pytest.mark.parametrize(
    "text",
    [
        "from p2ptrain.runtime.node import Node",
        "def later():\n    import p2ptrain.runtime.node",
        "if TYPE_CHECKING:\n    from p2ptrain.runtime import node",
    ],
)
def test_an_import_upwards_is_seen(text: str) -> None:
    tree = made_up(runtime__node="from p2ptrain.core import plan\nimport p2ptrain.errors", core__plan=text, errors="")
    (wrong,) = house.upward(tree)
    assert wrong.startswith("p2ptrain.core.plan:") and "imports p2ptrain.runtime.node" in wrong
    assert house.upward(made_up(runtime__node="", core__plan="import torch, typing")) == []


def test_what_a_layer_leaves_alone_is_seen() -> None:
    assert house.upward(made_up(net__link="from p2ptrain.learning import models")) == [
        "p2ptrain.net.link:1 imports p2ptrain.learning"
    ]


def test_no_files_need_each_other() -> None:
    assert house.circles(TREES) == []


def test_a_circle_is_seen() -> None:
    """Also one that is closed inside a function, or for types only; and two of them apart."""
    tree = made_up(
        core__a="from p2ptrain.core import b",
        core__b="def later():\n    from p2ptrain.core.c import thing",
        core__c="if TYPE_CHECKING:\n    import p2ptrain.core.a",
        core__d="import p2ptrain.core.a",
        wire__x="import p2ptrain.wire.y, p2ptrain.core.d",
        wire__y="import p2ptrain.wire.x, p2ptrain.wire.y",
    )
    assert house.circles(tree) == [
        ("p2ptrain.core.a", "p2ptrain.core.b", "p2ptrain.core.c"),
        ("p2ptrain.wire.x", "p2ptrain.wire.y"),
    ]
    del tree["p2ptrain.core.c"], tree["p2ptrain.wire.y"]
    assert house.circles(tree) == []


def test_only_the_modes_know_a_mode() -> None:
    assert house.known_modes(TREES, MODE_NAMES) == []


@pytest.mark.parametrize(
    "text",
    [
        "from p2ptrain.modes.tasks import role",
        "from p2ptrain.modes import tasks",
        "def later():\n    import p2ptrain.modes.tasks.role",
        'if job.mode == "tasks": pass',
        'if plan.mode in ("replicas", "auto"): pass',
        'word = WORDS["slices"]',
        'word = {"pipeline": 1}[job.mode]',
        'match job.mode:\n    case "tasks": pass',
    ],
)
def test_who_knows_a_mode_is_seen(text: str) -> None:
    modes = {
        "modes__registry": "from p2ptrain.modes.tasks import role",
        "modes__tasks": "",
        "modes__tasks__role": 'assert job.mode != "replicas"',
    }
    (wrong,) = house.known_modes(made_up(runtime__peer=text, **modes), MODE_NAMES)
    assert wrong.startswith("p2ptrain.runtime.peer:")
    plan = made_up(cli__plan="from p2ptrain.modes.tasks.role import Role", **modes)
    assert house.known_modes(plan, MODE_NAMES) == []


def test_all_but_the_modes_may_use_the_registry() -> None:
    tree = made_up(
        runtime__peer="from p2ptrain.modes.registry import mode_of\nfrom p2ptrain.modes import jobs",
        cli__job='if mode == "auto": pass',
        modes__registry="",
        modes__jobs="",
        modes__tasks__role="",
    )
    assert house.known_modes(tree, MODE_NAMES) == []


def test_folders_and_files_can_be_looked_through() -> None:
    """The lists of those that can't yet may only shrink: whatever fits by now is struck off."""
    assert house.too_full(PACKAGE) == TOO_FULL
    assert house.too_long(PACKAGE, MAY_BE_LONG) == TOO_LONG


def test_what_is_too_full_or_too_long_is_seen(tmp_path: Path) -> None:
    for folder, num_files in (
        (tmp_path, 1),
        (tmp_path / "full", house.MAX_FILES + 1),
        (tmp_path / "fits", house.MAX_FILES),
    ):
        folder.mkdir(exist_ok=True)
        for number in range(num_files):
            (folder / f"file_{number}.py").write_text("x = 1\n" * house.MAX_LINES)
    (tmp_path / "fits" / "file_0.py").write_text("x = 1\n" * (house.MAX_LINES + 1))
    assert house.too_full(tmp_path) == {"full"}
    assert house.too_long(tmp_path) == {"fits/file_0.py"} and house.too_long(tmp_path, ["fits/file_0.py"]) == set()


def test_base_modules_import_nothing_but_each_other() -> None:
    for module in (f"p2ptrain.{name}" for name in BASE):
        for imported, line, _ in imports(module):
            own = imported.split(".")[0] == "p2ptrain"
            assert own or imported.split(".")[0] in sys.stdlib_module_names, f"{module}:{line} imports {imported}"


def test_protocol_needs_only_the_standard_library_and_msgpack() -> None:
    allowed = sys.stdlib_module_names | {"p2ptrain", "msgpack"}
    forbidden = {"time", "socket", "asyncio", "threading", "secrets"}
    for module in (name for name in MODULES if layer_of(name) == "protocol"):
        for imported, line, _ in imports(module):
            top = imported.split(".")[0]
            assert top in allowed and top not in forbidden, f"{module}:{line} imports {imported}"


def test_torch_stays_where_it_belongs() -> None:
    """Only learning, and few modules by name, import torch at their top; elsewhere it is lazy or for types."""
    for module in MODULES:
        if layer_of(module) not in TORCH_FREE or module in TORCH_MODULES:
            continue
        for imported, line, at_top in imports(module, typing=False):
            heavy = imported.split(".")[0] in ("torch", "torchvision") or imported.startswith("safetensors.torch")
            assert not (heavy and at_top), f"{module}:{line} imports {imported}"


def test_light_modules_do_not_import_torch() -> None:
    """What they pull in is only seen in a fresh interpreter."""
    present = [name for name in LIGHT if name in MODULES]
    code = (
        "import importlib, sys\n"
        f"for name in {present!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_no_pickle_and_no_torch_load() -> None:
    last_words = {name.rpartition(".")[2] for name in FORBIDDEN}
    for module, tree in TREES.items():
        for imported, line, _ in imports(module):
            assert not imported.startswith(FORBIDDEN), f"{module}:{line} imports {imported}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                if module == READS_WEIGHTS and ast.unparse(node.func) == "torch.load":
                    assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                if isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec"), f"{module}:{node.lineno} calls {node.func.id}"
            elif isinstance(node, ast.Attribute) and node.attr in last_words:
                is_allowed = (module, ast.unparse(node)) == (READS_WEIGHTS, "torch.load")
                assert is_allowed or ast.unparse(node) not in FORBIDDEN, (
                    f"{module}:{node.lineno} uses {ast.unparse(node)}"
                )
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", f"{module}:{node.value.lineno} allows pickle"


def test_what_speaks_to_others_is_in_few_places() -> None:
    """No telemetry, and nothing is fetched from anywhere else: nobody but these has the means."""
    speaking = set()
    for module, tree in TREES.items():
        used = [each for each in ast.walk(tree) if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name)]
        of_sockets = {each.attr for each in used if each.value.id == "socket"}  # type: ignore[attr-defined]
        names = {each.partition(".")[0] for each, _, _ in imports(module)} & set(NETWORK)
        names -= {"socket"} if of_sockets == {"gethostname"} else set()
        if names or any(each.attr in ("open_connection", "start_server") for each in used):
            speaking.add(module)
    assert {"p2ptrain.net.transport", "p2ptrain.net.ways.knock", "p2ptrain.web.server"} <= speaking
    assert {each for each in speaking if not each.startswith(SPEAKS)} == {LOOKS_FOR_PORTS}


def test_no_bare_except() -> None:
    """``except Exception`` only at a process's entry point, where whatever went wrong is said and raised again."""
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else ""
            assert caught, f"{module}:{node.lineno}: a bare except"
            if "Exception" in caught.split(".")[-1:] or caught == "BaseException":
                again = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
                assert again or layer_of(module) == "cli", f"{module}:{node.lineno}: except {caught} that swallows"


def test_modules_say_what_they_are() -> None:
    assert [module for module, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []
