"""Imports point down only, nobody imports torch who must not, and what is never used is never used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2ptrain

PACKAGE = Path(p2ptrain.__file__).parent
LAYERS = (
    "cli",
    "experiment",
    "api",
    "ui",
    "simulation",
    "runtime",
    "modes",
    "core",
    "net",
    "learning",
    "planning",
    "protocol",
    "wire",
    "base",
)
"""Top to bottom. A module may import from its own layer and from those below."""
BASE = ("errors", "ids", "config", "words", "version")
FORBIDDEN = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "torch.load", "torch.save")
SIBLINGS = {
    "core": ("net", "learning"),
    "net": ("learning", "planning"),
    "learning": ("protocol",),
    "planning": ("protocol",),
    "protocol": (),
}
"""What a layer leaves alone although it lies below: net moves frames, learning knows nothing of peers."""
TORCH_FREE = ("cli", "ui", "simulation", "runtime", "modes", "core", "net", "planning", "protocol", "wire", "base")
TORCH_MODULES = (
    "p2ptrain.runtime.trainer.trainer",
    "p2ptrain.modes.pipeline.worker",
    "p2ptrain.modes.tasks.worker",
    "p2ptrain.modes.tasks.parts",
    "p2ptrain.modes.tasks.training",
    "p2ptrain.modes.tasks.head_fitting",
    "p2ptrain.cli.evaluate",
)
"""Of those layers, the only ones that may import torch at their top."""
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


def layer_of(module: str) -> str | None:
    """``None``: the package's own ``__init__``, which imports lazily whatever it exports."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return "base" if parts[1] in BASE else parts[1]


def type_checking_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``: they import nothing when the program runs."""
    blocks = (n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING"))
    return {node for block in blocks for statement in block.body for node in ast.walk(statement)}


def imports(module: str, *, typing: bool = True) -> Iterator[tuple[str, int, bool]]:
    """(imported module, line, at the top) of every import, those inside functions too."""
    tree = TREES[module]
    skipped = set() if typing else type_checking_only(tree)
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            source = node.module or ""
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield (name if name in MODULES else source), node.lineno, node not in inside


def test_every_module_has_a_layer() -> None:
    assert {layer_of(module) for module in MODULES} - {None} <= set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    own = layer_of(module)
    if own is None:
        return
    wrong = []
    for imported, line, _ in imports(module):
        if imported.split(".")[0] != "p2ptrain":
            continue
        layer = layer_of(imported)
        if layer is None:  # ``from p2ptrain import __version__``: only for those on top of everything
            fits = own in ("cli", "experiment", "api", "ui", "runtime")
        else:
            fits = LAYERS.index(layer) >= LAYERS.index(own) and layer not in SIBLINGS.get(own, ())
        if not fits:
            wrong.append(f"{MODULES[module].name}:{line} imports {imported}")
    assert not wrong


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


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle_and_no_torch_load(module: str) -> None:
    for imported, line, _ in imports(module):
        assert not imported.startswith(FORBIDDEN), f"{module}:{line} imports {imported}"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in FORBIDDEN, f"{module}:{node.lineno} uses {ast.unparse(node)}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", f"{module}:{node.value.lineno} allows pickle"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{module}:{node.lineno} calls {node.func.id}"


@pytest.mark.parametrize("module", MODULES)
def test_no_bare_except(module: str) -> None:
    """``except Exception`` only at a process's entry point, where whatever went wrong is said and raised again."""
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else ""
        assert caught, f"{module}:{node.lineno}: a bare except"
        if "Exception" in caught.split(".")[-1:] or caught == "BaseException":
            again = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            assert again or layer_of(module) == "cli", f"{module}:{node.lineno}: except {caught} that swallows"


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are(module: str) -> None:
    tree = TREES[module]
    assert not tree.body or ast.get_docstring(tree), f"{module} has no docstring"
