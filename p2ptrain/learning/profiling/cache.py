"""The file that remembers how long blocks take: of which device, model, batch sizes and version of torch.

Invariant: what makes no sense is as if it were not there, since it can be measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2ptrain.config import Coding
from p2ptrain.errors import UserError
from p2ptrain.lasting import in_place_of
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.planning.devices.blocks import BlockTimes

CACHE_FORMAT = "p2ptrain-block-times-7"
CODED = "coded_s_per_byte"
"""In the file: by coding, seconds of activations and of gradients."""


def key_of(chain: Chain, name: str, sizes: Sequence[int], device: torch.device, optimizer: str) -> str:
    """Device, model and versions, in words; the model's blocks by a hash of what they hold and pass on."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.node()} {platform.machine()} {device.type}, {torch.get_num_threads()} threads"
    shapes = [
        [(n, tuple(t.shape)) for n, t in chain.slice(i, i + 1).state_dict().items()] for i in range(len(chain.blocks))
    ]
    text = repr((chain.input, chain.blocks, shapes))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    batches = f"batches {', '.join(map(str, sizes))}, {optimizer}"
    return f"{where} | {name} {digest} | {batches} | torch {torch.__version__}"


def times_of(entry: Any, num_blocks: int, codings: tuple[Coding, Coding] | None) -> BlockTimes | None:
    """What an entry of the file says, if it makes sense; with these codings if it says that, too."""
    try:
        sizes = tuple(int(size) for size in entry["batch_sizes"])
        rows = [[tuple(float(s) for s in row) for row in entry[key]] for key in ("forward_s", "backward_s")]
        by_byte = [float(entry["update_s_per_byte"])]
        if codings is not None:
            by_byte += [float(entry[CODED][coding][way]) for way, coding in enumerate(codings)]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    numbers = [*by_byte, *(second for side in rows for row in side for second in row)]
    if not sizes or any(len(side) != len(sizes) or any(len(row) != num_blocks for row in side) for side in rows):
        return None
    if not all(math.isfinite(second) and second >= 0 for second in numbers):
        return None
    return BlockTimes(sizes, tuple(rows[0]), tuple(rows[1]), *by_byte)


def read(path: Path) -> dict[str, Any]:
    """The file's entries; none if it is not there or not ours, because it can be made again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("format") != CACHE_FORMAT:
        return {}
    times = content.get("times")
    return times if isinstance(times, dict) else {}


def write(path: Path, entries: Mapping[str, Any]) -> None:
    text = json.dumps({"format": CACHE_FORMAT, "times": entries}, indent=1, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_place_of(path) as beside:
            beside.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: can't be written ({error.strerror}); measured times need a file to be kept in"
        ) from None
