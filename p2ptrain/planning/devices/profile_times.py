"""Measured times of blocks in a device profile: tables of arrays, one table for each model that was measured.

    [[block_times]]
    model = "vgg11"
    chain = "5f0c..."                  # names the blocks: model, input shape, classes and width
    source = "how the times came about"
    batch_sizes = [2, 8, 32]
    forward_s = [                      # a row for each batch size, a time for each block
      [0.00123, 0.00087],
      ...
    ]
    backward_s = [...]
    update_s_per_byte = 1.2e-10        # the optimizer's step, for each byte of parameters (may be missing: 0)
    coding_s_per_byte = { none = [1.1e-10, 1.2e-10], fp16 = [...], int8 = [...] }
                                       # making stage messages and taking them in, for each byte of activations, and of
                                       # gradients, before it is coded (may be missing: 0)

Invariant: what ``block_times_of`` returns is as many finite times for each batch size, none below zero. Whether there
is one for each block of a model only the model can tell (``check_times``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from p2ptrain.config import CODINGS, Coding
from p2ptrain.errors import UserError
from p2ptrain.planning.devices.blocks import MAX_BLOCKS, BlockTimes

KEY = "block_times"
HEADER = f"[[{KEY}]]"
TEXTS = ("model", "chain", "source")
FIELDS = (*TEXTS, "batch_sizes", "forward_s", "backward_s", "update_s_per_byte", "coding_s_per_byte")
MAX_TABLES = 256
MAX_ROWS = 64
MAX_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class MeasuredBlocks:
    """A device's times for one model."""

    model: str
    chain: str
    """``profile_codec.chain_hash`` of the model's profile: times hold for no other."""
    source: str
    times: BlockTimes
    codings: Mapping[Coding, tuple[float, float]] = field(default_factory=dict)
    """What coding takes: seconds for each byte of activations, and of gradients."""

    def times_with(self, activations: Coding, gradients: Coding) -> BlockTimes:
        """Of a job that sends them coded like that; nothing for a coding that was not measured."""
        nothing = (0.0, 0.0)
        return replace(
            self.times,
            activation_s_per_byte=self.codings.get(activations, nothing)[0],
            gradient_s_per_byte=self.codings.get(gradients, nothing)[1],
        )

    def to_toml(self) -> str:
        """The table, and a line's end."""
        lines = [HEADER]
        lines += [f"{key} = {quoted(getattr(self, key))}" for key in TEXTS]
        lines.append(f"batch_sizes = [{', '.join(map(str, self.times.batch_sizes))}]")
        for key in ("forward_s", "backward_s"):
            rows = [f"  [{', '.join(f'{float(value)!r}' for value in row)}]," for row in getattr(self.times, key)]
            lines += [f"{key} = [", *rows, "]"]
        if self.times.update_s_per_byte:
            lines.append(f"update_s_per_byte = {float(self.times.update_s_per_byte)!r}")
        if self.codings:
            each = (f"{coding} = [{float(one)!r}, {float(other)!r}]" for coding, (one, other) in self.codings.items())
            lines.append(f"coding_s_per_byte = {{ {', '.join(each)} }}")
        return "\n".join(lines) + "\n"


def block_times_of(tables: object, path: Path) -> tuple[MeasuredBlocks, ...]:
    """Check what a profile's file says. Raises ``UserError`` naming file, key and next step."""
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables) or len(tables) > MAX_TABLES:
        raise UserError(
            f"{path}: {KEY}: expected at most {MAX_TABLES} tables; write {HEADER} before each, or remove it"
        )
    found = tuple(_measured(table, path) for table in tables)
    chains = [each.chain for each in found]
    twice = next((each.model for each in found if chains.count(each.chain) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: {KEY}: the same blocks of {twice} twice; remove one of the two {HEADER} tables")
    return found


def with_block_times(text: str, measured: MeasuredBlocks, chains: tuple[str, ...]) -> str:
    """A profile's text with one more table at its end, in place of the one for the same blocks; ``chains``: the
    chains of its tables, in order. The rest, a person's comments among it, stays."""
    lines = text.splitlines(keepends=True)
    if measured.chain in chains:
        heads = [i for i, line in enumerate(lines) if line.split("#")[0].strip() == HEADER]
        start = heads[chains.index(measured.chain)]
        stop = start + 1
        while stop < len(lines) and not lines[stop].startswith("["):
            stop += 1
        del lines[start:stop]
    return "".join(lines).rstrip() + "\n\n" + measured.to_toml()


def quoted(text: str) -> str:
    """A basic string: TOML's are JSON's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _measured(table: dict[str, Any], path: Path) -> MeasuredBlocks:
    for key in table:
        if key not in FIELDS:
            raise UserError(f"{path}: {KEY}.{key}: unknown key; known are {', '.join(FIELDS)}; correct or remove it")
    model = table.get("model")
    for key in TEXTS:
        value = table.get(key)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f'{path}: {KEY}.{key}: missing; write {key} = "...", or {_again(model)}')
    sizes = table.get("batch_sizes")
    if (
        not isinstance(sizes, list)
        or not 1 <= len(sizes) <= MAX_ROWS
        or not all(type(size) is int and 1 <= size <= MAX_BATCH for size in sizes)
        or sizes != sorted(set(sizes))
    ):
        raise UserError(f"{path}: {KEY}.batch_sizes of {model}: {sizes!r:.60}; they must rise from 1; {_again(model)}")
    rows = {key: _rows(table.get(key), key, sizes, str(model), path) for key in ("forward_s", "backward_s")}
    widths = {len(row) for each in rows.values() for row in each}
    if len(widths) > 1:
        raise UserError(
            f"{path}: {KEY} of {model}: rows of {' and '.join(map(str, sorted(widths)))} times; "
            f"each must have one for each block; {_again(model)}"
        )
    update = table.get("update_s_per_byte", 0.0)
    if not _is_second_per_byte(update):
        raise UserError(
            f"{path}: {KEY}.update_s_per_byte of {model}: {update!r:.40}; it must be seconds; {_again(model)}"
        )
    times = BlockTimes(tuple(sizes), rows["forward_s"], rows["backward_s"], float(update))
    return MeasuredBlocks(str(model), table["chain"], table["source"], times, _codings(table, path))


def _is_second_per_byte(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def _codings(table: dict[str, Any], path: Path) -> dict[Coding, tuple[float, float]]:
    given = table.get("coding_s_per_byte", {})
    if not isinstance(given, dict) or not given.keys() <= set(CODINGS):
        raise UserError(
            f"{path}: {KEY}.coding_s_per_byte of {table['model']}: not a table of {', '.join(CODINGS)}; "
            f"{_again(table['model'])}"
        )
    for coding, both in given.items():
        if not isinstance(both, list) or len(both) != 2 or not all(map(_is_second_per_byte, both)):
            raise UserError(
                f"{path}: {KEY}.coding_s_per_byte.{coding} of {table['model']}: {both!r:.40}; it must be seconds of "
                f"activations and of gradients; {_again(table['model'])}"
            )
    return {coding: (float(given[coding][0]), float(given[coding][1])) for coding in CODINGS if coding in given}


def _rows(value: object, key: str, sizes: list[int], model: str, path: Path) -> tuple[tuple[float, ...], ...]:
    if (
        not isinstance(value, list)
        or len(value) != len(sizes)
        or not all(isinstance(row, list) and 1 <= len(row) <= MAX_BLOCKS for row in value)
    ):
        raise UserError(
            f"{path}: {KEY}.{key} of {model}: not a row of times for each of {len(sizes)} batch sizes; {_again(model)}"
        )
    for size, row in zip(sizes, value, strict=True):
        for block, each in enumerate(row):
            if type(each) not in (int, float) or not math.isfinite(each) or each < 0:
                raise UserError(
                    f"{path}: {KEY}.{key} of {model}: block {block} at batch size {size} takes {each!r:.40}; "
                    f"it must be seconds; {_again(model)}"
                )
        if not any(row):
            raise UserError(
                f"{path}: {KEY}.{key} of {model}: no block takes any time at batch size {size}; {_again(model)}"
            )
    return tuple(tuple(map(float, row)) for row in value)


def _again(model: object) -> str:
    name = model if isinstance(model, str) and model else "NAME"
    return f"remove the table and measure again with `p2ptrain probe --model {name}`"
