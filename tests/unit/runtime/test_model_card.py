"""A model card says what the file says, and nobody's name becomes markup."""

from __future__ import annotations

import json
from pathlib import Path

from p2ptrain.runtime.model_card import MARK, card_text

PART = {"part": 0, "classes": ["cat", "a|b"], "round": 3, "rounds": 5, "samples": 1200, "trainers": ["lap*top"]}
METADATA = {
    "format": "p2ptrain-model-1",
    "model": "lenet",
    "classes": json.dumps(["cat", "a|b", "<b>dog</b>"]),
    "input_shape": "[3, 32, 32]",
    "mean": "[0.5, 0.5, 0.5]",
    "std": "[0.2, 0.2, 0.2]",
    "kind": "image",
    "job_id": "aa11",
    "job_name": "pets",
    "mode": "tasks",
    "completeness": "incomplete",
    "lineage": json.dumps([PART]),
    "harvest": json.dumps({"validation": {"accuracy": 0.875, "samples": 240}, "missing": [{"classes": ["a|b"]}]}),
}


def test_what_the_file_says() -> None:
    text = card_text(Path("global.safetensors"), METADATA, "91.0 % of 100 test samples are right.")
    assert text.startswith(f"{MARK}\n# pets\n")
    assert "`lenet`, classes: 3, input 3 x 32 x 32" in text and "mode tasks" in text and "Job aa11" in text
    assert "87.5 % of 240 validation samples" in text and "91.0 % of 100 test samples" in text
    assert "**Incomplete**: a\\|b can't be recognised" in text
    assert 'p2ptrain.load_model("global.safetensors")' in text and '["photo.jpg"]' in text
    assert "| 0 | cat, a\\|b | 3 of 5 | 1,200 | lap\\*top |" in text
    assert "\\<b\\>dog\\</b\\>" in text and "<b>" not in text


def test_the_shown_lines_are_python_for_every_kind() -> None:
    for kind in ("image", "audio", "text"):
        code = card_text(Path('a"b.safetensors'), {**METADATA, "kind": kind}).split("```")[1].removeprefix("python")
        compile(code, "card", "exec")


def test_an_older_file_says_less() -> None:
    older = {name: METADATA[name] for name in ("model", "classes", "input_shape", "kind", "job_id")}
    text = card_text(Path("global.safetensors"), older)
    assert text.startswith(f"{MARK}\n# global\n") and ", mode " not in text and "Incomplete" not in text
