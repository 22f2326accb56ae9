"""Snapshots of a pipeline stage, or of some of its blocks, and going on from such pieces wherever they were cut.

A piece has the tensors of a run of blocks under the plain model's names, ``model.`` and ``optim.``, and says in its
metadata which blocks and after how many batches. It is what a stage keeps for itself, lets others keep, and hands
over when blocks move.

Invariant: all of a stage's tensors and optimizer state come from pieces of one step, and every one is checked before
the first is used: what does not fit has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.averaging import check_state
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pipeline.optimizer_state import checked_state, state_tensors
from p2ptrain.learning.pipeline.stage import StageModel
from p2ptrain.learning.snapshots import copy_to_cpu, read_count, shared_on_cpu, split_state

FORMAT = "p2ptrain-slice-1"
Snapshot = tuple[Mapping[str, Tensor], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training is. ``drawn``: samples that each peer has drawn of its own, by name."""

    step: int
    total_steps: int
    samples: int
    drawn: Mapping[str, int]


def take_piece(
    stage: StageModel, chain: Chain, first: int, stop: int, progress: Progress, *, copy: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a stage holds of these blocks, on the CPU; without ``copy`` it changes with the stage."""
    taken = copy_to_cpu if copy else shared_on_cpu
    state = stage.state()
    names = chain.tensor_names(first, stop)
    if not set(names) <= state.keys():
        raise LocalError(f"blocks {first} to {stop} are not in this stage")
    tensors = {f"model.{name}": taken(state[name]) for name in names}
    for name in names:
        parameter = stage.parameters.get(name)
        if parameter is not None:
            tensors |= state_tensors(stage.config, stage.optimizer, name, parameter, taken)
    return tensors, piece_metadata(first, stop, progress, stage.config.optimizer_name)


def piece_metadata(first: int, stop: int, progress: Progress, optimizer: str) -> dict[str, str]:
    """What a piece of blocks [first, stop) says of itself."""
    return {
        "format": FORMAT,
        "first": str(first),
        "stop": str(stop),
        "step": str(progress.step),
        "total_steps": str(progress.total_steps),
        "samples": str(progress.samples),
        "optimizer": optimizer,
        **{f"drawn.{peer}": str(drawn) for peer, drawn in progress.drawn.items()},
    }


def cut_anew(
    chain: Chain, pieces: Sequence[Snapshot], runs: Sequence[tuple[int, int]], optimizer: str, step: int
) -> list[Snapshot]:
    """Pieces of ``step`` that together have these runs of blocks, cut into them. Raises ``RemoteError``."""
    found: dict[str, dict[str, Tensor]] = {}
    drawn: dict[str, int] = {}
    samples = total_steps = 0
    for tensors, metadata in pieces:
        names = frozenset(_names(chain, metadata, optimizer, step))
        samples, total_steps = max(samples, read_count(metadata, "samples")), read_count(metadata, "total_steps")
        drawn |= {key[6:]: read_count(metadata, key) for key in metadata if key.startswith("drawn.")}
        for key, tensor in tensors.items():
            owner = key.removeprefix("model.") if key.startswith("model.") else key.split(".", 2)[-1]
            if owner not in names:
                raise RemoteError("tensor-names", f"a piece should not have {key!r:.80}")
            found.setdefault(owner, {}).setdefault(key, tensor)
    progress = Progress(step, total_steps, samples, drawn)
    cut: list[Snapshot] = []
    for first, stop in runs:
        wanted = chain.tensor_names(first, stop)
        if missing := [name for name in wanted if name not in found]:
            raise RemoteError("snapshot", f"no piece has {missing[0]!r}")
        held = {key: tensor for name in wanted for key, tensor in found[name].items()}
        cut.append((held, piece_metadata(first, stop, progress, optimizer) | {"cut": "anew"}))
    return cut


def restore_pieces(
    stage: StageModel, chain: Chain, start: int, stop: int, pieces: Sequence[Snapshot], step: int
) -> Progress:
    """Put pieces that together cover blocks ``start`` to ``stop - 1`` into the stage. Raises ``RemoteError``."""
    model: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor]] = {}
    samples = 0
    drawn: dict[str, int] = {}
    total_steps = 0
    for tensors, metadata in pieces:
        names = frozenset(_names(chain, metadata, stage.config.optimizer_name, step))
        samples = max(samples, read_count(metadata, "samples"))  # a stage may have skipped a batch alone ("async")
        total_steps = read_count(metadata, "total_steps")
        drawn |= {key[6:]: read_count(metadata, key) for key in metadata if key.startswith("drawn.")}
        state, states = split_state(tensors)
        if state.keys() != names:
            odd = sorted(state.keys() ^ names)
            raise RemoteError("tensor-names", f"a piece misses or should not have {odd[:3]}")
        by_name: dict[str, dict[str, Tensor]] = {}
        for name, tensor in states.items():
            key, _, owner = name.partition(".")
            if owner not in names:
                raise RemoteError("snapshot", f"optimizer state {name!r:.80} is unknown")
            by_name.setdefault(owner, {})[key] = tensor
        for name, tensor in state.items():
            if name not in model:  # of two copies the first, with its own optimizer's state
                model[name] = tensor
                optimizer[name] = by_name.get(name, {})
    missing = [name for name in chain.tensor_names(start, stop) if name not in model]
    if missing:
        raise RemoteError("snapshot", f"no piece has {missing[0]!r}; all blocks from {start} to {stop - 1} are needed")
    ours = stage.module.state_dict()
    check_state({name: model[name] for name in ours}, ours)
    states_of = {name: checked_state(stage.config, name, p, optimizer[name]) for name, p in stage.parameters.items()}
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(model[name])
    if stage.optimizer is not None:
        stage.optimizer.state.clear()
        for name, state_of in states_of.items():
            if state_of:
                stage.optimizer.state[stage.parameters[name]] = state_of
    return Progress(step, total_steps, samples, drawn)


def _names(chain: Chain, metadata: Mapping[str, str], optimizer: str, step: int) -> tuple[str, ...]:
    """The tensors that a piece must have, by its metadata."""
    if metadata.get("format") != FORMAT or metadata.get("optimizer") != optimizer:
        raise RemoteError("snapshot", "not a piece of a pipeline that trains with this optimizer")
    first, stop = read_count(metadata, "first"), read_count(metadata, "stop")
    if not 0 <= first < stop <= len(chain.blocks):
        raise RemoteError("snapshot", f"blocks {first} to {stop} of {len(chain.blocks)}")
    if read_count(metadata, "step") != step:
        raise RemoteError("snapshot", f"of step {metadata['step']}, expected {step}")
    return chain.tensor_names(first, stop)
