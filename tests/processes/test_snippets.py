"""Every piece of Python that a page or a docstring shows, run as it stands there.

What is changed, and why: the join code is one that was made, the network is loopback, and nobody is looked for longer
than a second, as nobody else is there.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import p2ptrain
from p2ptrain.net.keys import new_group

ROOT = Path(p2ptrain.__file__).parents[1]
PAGES = sorted(path for path in ROOT.rglob("*.md") if ".venv" not in path.parts)
ALONE = """
import functools
import p2ptrain, p2ptrain.api
from p2ptrain.runtime.node.node import NetworkConfig
p2ptrain.api.NetworkConfig = lambda: NetworkConfig(("127.0.0.1",), discover=False)
p2ptrain.harvest = functools.partial(p2ptrain.api.harvest, wait_s=1.0)
"""
CODE = "K7QF-…"


def of_pages() -> dict[str, list[str]]:
    blocks = {path: re.findall(r"^```py(?:thon)?\n(.*?)^```", path.read_text("utf-8"), re.M | re.S) for path in PAGES}
    return {str(path.relative_to(ROOT)): found for path, found in blocks.items() if found}


def of_docstrings() -> dict[str, list[str]]:
    """Indented blocks that use the package."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "p2ptrain").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for block in re.findall(r"(?:^(?: {4}.*)?\n)+", f"{ast.get_docstring(node) or ''}\n", re.M):
                    if re.search(r"\bp2ptrain\.\w+\(", block):
                        found.setdefault(str(path.relative_to(ROOT)), []).append(textwrap.dedent(block).strip() + "\n")
    return found


def test_there_is_one_and_all_show_the_same() -> None:
    shown = {where: blocks for found in (of_pages(), of_docstrings()) for where, blocks in found.items()}
    assert {"p2ptrain/README.md", "p2ptrain/__init__.py"} <= shown.keys()
    different = {block for blocks in shown.values() for block in blocks}
    assert len([block for block in different if "p2ptrain" in block]) == 1, "run the others here too"
    models = [block for block in different if "p2ptrain" not in block]
    assert [block.split("(")[0] for block in models] == ["def build"]


def test_the_model_that_is_shown_is_one() -> None:
    import math

    from torch import nn, randn

    (block,) = {block for blocks in of_pages().values() for block in blocks if block.startswith("def build")}
    names = {"nn": nn, "math": math}
    exec(block, names)
    assert names["build"]((3, 8, 8), 5)(randn(2, 3, 8, 8)).shape == (2, 5)  # type: ignore[operator]


def test_defaults_of_a_peer_are_the_command_lines() -> None:
    from p2ptrain.cli.peer import command

    context = command.make_context("peer", [], resilient_parsing=True)
    options = context.params
    own = {name: p.default for name, p in inspect.signature(p2ptrain.PeerOptions).parameters.items()}
    assert own["device"] == options["device"] and own["data"] == options["data"] == ""
    assert options.get("threads") is None and own["num_threads"] == 0, "all cores"
    assert options.get("profile") is None and own["flops_per_s"] is None, "measured"
    assert own["keep_model"] and not options["no_model"] and own["out"] is options.get("out") is None


@pytest.mark.slow
def test_the_snippet_as_it_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("photos", 30), ("test", 10)):
        for number, name in enumerate(("bright", "dark")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3)) + 130 * (1 - number)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"P2PTRAIN_STATE": str(tmp_path / "state"), "PYTHONPATH": path}
    new = [sys.executable, "-m", "p2ptrain.cli.main", "job", "new", "--data", "images:photos/", "--rounds", "3"]
    subprocess.run([*new, "--min-peers", "1", "--batch-size", "8"], cwd=tmp_path, env=environment, check=True)
    (snippet,) = of_pages()["p2ptrain/README.md"]
    assert snippet.count(CODE) == 1
    program = ALONE + snippet.replace(CODE, str(new_group()))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == 1.0, "bright and dark are told apart"
    assert (tmp_path / "global.safetensors").is_file()
    assert list((tmp_path / "state").glob("*/model.safetensors")), "what run_peer wrote"
