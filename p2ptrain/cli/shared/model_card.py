"""Where ``harvest --card`` writes.

Invariant: takes the place of an earlier card, and of no other file unless that was asked for.
"""

from __future__ import annotations

from pathlib import Path

from p2ptrain.cli.shared.outputs import check_apart, check_gives_way, write_text
from p2ptrain.runtime.harvest import former_model
from p2ptrain.runtime.model_card import MARK, card_text


def check_card(path: Path, model_file: Path, *, force: bool) -> None:
    """Raises ``UserError`` before any work is done."""
    check_apart(path, "--card", model_file, "-o")
    check_gives_way(path, MARK, "model card", force=force, option="--card")


def write_card(path: Path, model_file: Path, tested: str = "") -> None:
    """Of a model that was harvested."""
    write_text(path, card_text(model_file, former_model(model_file) or {}, tested))
