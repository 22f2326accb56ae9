"""A model card: what a harvested file says of its model, as Markdown for people who get the file.

Invariant: everything is from the file itself, and text that is not ours is kept from being markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2ptrain.version import __version__
from p2ptrain.words import clean, percent

MARK = "<!-- a model card of p2ptrain -->"
"""The first line, so that a later card knows it may take the place of this one."""
MAX_CLASSES = 200
TASKS = {
    "image": "image-classification",
    "audio": "audio-classification",
    "text": "text-generation",
    "tokens": "text-classification",
}


def card_text(file: Path, metadata: Mapping[str, str], tested: str = "") -> str:
    """``metadata``: of the file, as ``former_model`` reads it; ``tested``: a sentence on its accuracy on other data."""
    harvest = _table(metadata.get("harvest", "{}"))
    classes = [str(each) for each in _list(metadata.get("classes", "[]"))]
    kind, model = metadata.get("kind", ""), metadata.get("model", "?")
    shape = " x ".join(str(each) for each in _list(metadata.get("input_shape", "[]")))
    lines = [
        MARK,
        f"# {_safe(metadata.get('job_name') or file.stem)}",
        "",
        f"A model of {TASKS.get(kind, kind)}: `{_code(model)}`, classes: {len(classes)}, input {shape}. Trained by a "
        "group of devices with p2ptrain.",
        "",
        *_state(metadata, harvest),
        *([tested, ""] if tested else []),
        "## Use",
        "",
        "```python",
        "import p2ptrain",
        f'model, card = p2ptrain.load_model("{_code(file.name)}")  # a torch.nn.Module in eval mode',
        _use_line(kind),
        "```",
        "",
        "Its tensors have the names of the plain PyTorch module, so `load_state_dict` takes them without p2ptrain.",
        _inputs_line(kind, metadata),
        "",
        "## Classes",
        "",
        ", ".join(_safe(name) for name in classes[:MAX_CLASSES])
        + (f", and {len(classes) - MAX_CLASSES} more" if len(classes) > MAX_CLASSES else ""),
        "",
        "## Who trained what",
        "",
        *_parts(_list(metadata.get("lineage", "[]"))),
        "",
        f"Job {_safe(metadata.get('job_id', '?'))}"
        + (f", mode {_safe(metadata['mode'])}" if metadata.get("mode") else "")
        + f". Written by p2ptrain {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _inputs_line(kind: str, metadata: Mapping[str, str]) -> str:
    if kind in ("text", "tokens"):
        return "Inputs are token numbers [batch, 1, 1, length]" + ("." if kind == "text" else "; 0 is padding.")
    return (
        f"Inputs are normalised: less mean {metadata.get('mean', '[]')}, over standard deviation "
        f"{metadata.get('std', '[]')}, of values from 0 to 1."
    )


def _use_line(kind: str) -> str:
    if kind == "text":
        return 'print(bytes(p2ptrain.generate(model, card, "Once upon")))'
    name = {"audio": "clip.wav", "tokens": "text.txt"}.get(kind, "photo.jpg")
    return f'print(next(p2ptrain.predict(model, card, ["{name}"])))'


def _state(metadata: Mapping[str, str], harvest: Mapping[str, Any]) -> list[str]:
    """How whole it is, and how good the group found it."""
    lines = []
    completeness = metadata.get("completeness", "")
    if completeness == "half-way":
        lines += ["**Half-way**: it was harvested while the group still trained.", ""]
    elif completeness == "incomplete":
        missing = [str(name) for part in harvest.get("missing") or () for name in part.get("classes") or ()]
        what = f": {', '.join(_safe(name) for name in missing)} can't be recognised" if missing else ""
        lines += [f"**Incomplete**{what}.", ""]
    best = harvest.get("best")
    if completeness == "best" and isinstance(best, dict) and isinstance(best.get("accuracy"), (int, float)):
        told = f"{percent(best['accuracy'])} of {best.get('samples', 0):,} validation samples were right"
        lines += [f"**The best state**, after round {best.get('round', '?')}: {told}.", ""]
    found = harvest.get("validation")
    if isinstance(found, dict) and isinstance(found.get("accuracy"), (int, float)):
        lines += [f"{percent(found['accuracy'])} of {found.get('samples', 0):,} validation samples are right.", ""]
    return lines


def _parts(lineage: Sequence[Any]) -> list[str]:
    rows = [
        "| part | classes | rounds | samples seen | trained by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part in lineage:
        if isinstance(part, dict):
            names = ", ".join(_safe(str(name)) for name in list(part.get("classes") or ())[:20])
            who = ", ".join(_safe(str(name)) for name in part.get("trainers") or ())
            done = f"{part.get('round', '?')} of {part.get('rounds', '?')}"
            rows.append(f"| {part.get('part', '?')} | {names} | {done} | {part.get('samples', 0):,} | {who} |")
    return rows


def _safe(text: str) -> str:
    """Plain text within Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", clean(text, 80))


def _code(text: str) -> str:
    return clean(text, 200).replace("`", "'").replace('"', "'")


def _list(text: str) -> list[Any]:
    found = json.loads(text)
    return found if isinstance(found, list) else []


def _table(text: str) -> Mapping[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}
