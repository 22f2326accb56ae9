"""The rules of the house, of any tree of modules: each function gives what breaks one, in words.

A tree is made of modules by their full names, each parsed. Every import counts: also one inside a function, and one for
types only, as whoever reads a file has to know the other too.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

LAYERS = (
    "cli",
    "experiment",
    "api",
    "web",
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
BASE = ("errors", "ids", "imports", "lasting", "config", "data_config", "model_config", "loggers", "words", "version")
SIBLINGS = {
    "core": ("net", "learning"),
    "net": ("learning", "planning"),
    "learning": ("protocol",),
    "planning": ("protocol",),
    "protocol": (),
}
"""What a layer leaves alone although it lies below: net moves frames, learning knows nothing of peers."""
MODES = "p2ptrain.modes"
MAY_KNOW_MODES = ("p2ptrain.cli.plan",)
"""The planner of pipelines is a command of its own."""
MAX_FILES, MAX_LINES = 15, 400
Tree = Mapping[str, ast.Module]


def layer_of(module: str) -> str | None:
    """``None``: the package's own ``__init__``, which imports lazily whatever it exports."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return "base" if parts[1] in BASE else parts[1]


def imports(tree: Tree, module: str, *, typing: bool = True) -> Iterator[tuple[str, int, bool]]:
    """(imported module, line, at the top) of every import, those inside functions too."""
    parsed = tree[module]
    skipped = set() if typing else _type_checking_only(parsed)
    inside = {
        node
        for function in ast.walk(parsed)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(parsed):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            source = node.module or ""
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield (name if name in tree else source), node.lineno, node not in inside


def _type_checking_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``: they import nothing when the program runs."""
    blocks = (n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING"))
    return {node for block in blocks for statement in block.body for node in ast.walk(statement)}


def upward(tree: Tree) -> list[str]:
    """Imports that do not point down."""
    wrong = []
    for module in tree:
        own = layer_of(module)
        for imported, line, _ in imports(tree, module) if own is not None else ():
            if imported.split(".")[0] != "p2ptrain":
                continue
            layer = layer_of(imported)
            if layer is None:  # ``from p2ptrain import __version__``: only for those on top of everything
                fits = own in ("cli", "experiment", "api", "ui", "runtime")
            else:
                fits = LAYERS.index(layer) >= LAYERS.index(own) and layer not in SIBLINGS.get(own, ())
            if not fits:
                wrong.append(f"{module}:{line} imports {imported}")
    return wrong


def circles(tree: Tree) -> list[tuple[str, ...]]:
    """Files that need each other, each circle in the order of names: the strongly connected components of all imports
    that have more than one file.

    Of the package's own ``__init__`` only what others import from it counts.
    """
    others: dict[str, list[str]] = {
        module: sorted({name for name, _, _ in imports(tree, module) if name in tree and name != module})
        if layer_of(module) is not None
        else []
        for module in tree
    }
    found: list[tuple[str, ...]] = []
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_: list[str] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        open_.append(module)
        for other in others[module]:
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in open_:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            circle = open_[open_.index(module) :]
            del open_[open_.index(module) :]
            if len(circle) > 1:
                found.append(tuple(sorted(circle)))

    for module in tree:
        if module not in number:
            visit(module)
    return sorted(found)


def known_modes(tree: Tree, names: Collection[str]) -> list[str]:
    """Where something outside of the modes' folders knows one of them: imports from its folder, or tells modes apart by
    their ``names``. The CLI may do the latter: its defaults and its help are about them."""
    wrong = []
    for module in tree:
        if f"{module}.".startswith(f"{MODES}."):
            continue
        for imported, line, _ in imports(tree, module):
            below = imported.removeprefix(f"{MODES}.").split(".")[0]
            is_folder = imported.startswith(f"{MODES}.") and any(name.startswith(f"{MODES}.{below}.") for name in tree)
            if is_folder and module not in MAY_KNOW_MODES:
                wrong.append(f"{module}:{line} imports {imported}")
        if layer_of(module) != "cli":
            lines = sorted({node.lineno for node in _told_apart(tree[module]) if node.value in names})
            wrong += [f"{module}:{line} tells modes apart" for line in lines]
    return wrong


def _told_apart(tree: ast.Module) -> Iterator[ast.Constant]:
    """Constants that something is compared with, or looked up by."""
    for node in ast.walk(tree):
        inside: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            inside = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            inside = [node.slice]
        elif isinstance(node, ast.Dict):
            inside = node.keys
        elif isinstance(node, ast.MatchValue):
            inside = [node.value]
        for each in inside:
            elements = each.elts if isinstance(each, ast.Tuple | ast.List | ast.Set) else [each]
            yield from (element for element in elements if isinstance(element, ast.Constant))


def too_full(folder: Path) -> set[str]:
    """Folders, of this one and those below it, with more files than one looks through; "." is the folder itself."""
    folders = (each for each in (folder, *folder.rglob("*")) if each.is_dir() and each.name != "__pycache__")
    return {
        each.relative_to(folder).as_posix()
        for each in folders
        if sum(file.is_file() for file in each.iterdir()) > MAX_FILES
    }


def too_long(folder: Path, exempt: Collection[str] = ()) -> set[str]:
    """Files with more lines than one reads through."""
    names = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.py")}
    return {
        name
        for name, file in names.items()
        if name not in exempt and len(file.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
