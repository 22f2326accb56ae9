"""A peer's update of a round, and the average of all updates, block by block, over unequal runs of blocks.

An *update* is the mean of the copies that one peer holds, of each block by samples, with the samples of each block. The
*average* is the mean of updates by these, and comes out as pieces: the next round's start, cut wherever a peer of the
plan begins or ends, so that each gets what it needs and no more.

Both means are those of ``robust.copies``. Of a block that three and more peers have a copy of, one of them moves the
average no further than the others allow; so does one of three and more owners the tails that one helper has. Of what
only a helper has, it says what it likes.

Invariant: every block's average is over the same samples, those of all units, each once; else there is none. An update
that does not fit is refused before any number of it counts, and whose it was can be told.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2ptrain.config import Robust, TrainingConfig
from p2ptrain.errors import RemoteError
from p2ptrain.learning.averaging import MAX_STATISTICS_RATIO, root_mean_square
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pipeline.optimizer_state import slots_of
from p2ptrain.learning.pipeline.snapshots import Progress, piece_metadata
from p2ptrain.learning.robust.copies import mean_of_copies
from p2ptrain.learning.snapshots import read_count, split_state

FORMAT = "p2ptrain-update-1"
MAX_SAMPLES = 1 << 40
"""Of one update: more is no count of samples."""
MAX_GROWTH = 100.0
"""A tensor of a model whose root mean square is this many times what it was before the round, and 1 more, is absurd."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Blocks [``first``, ``stop``) of one unit after its round, trained on ``samples``; tensors as in a snapshot."""

    first: int
    stop: int
    samples: int
    tensors: Mapping[str, Tensor]


@torch.no_grad()
def make_update(
    chain: Chain,
    round: int,
    copies: Sequence[Copy],
    *,
    with_optimizer: bool = False,
    are_equal: bool = False,
    robust: Robust = "none",
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mean of copies, by samples, of all blocks that one of them has.

    ``with_optimizer``: the optimizer's tensors too, where all copies of a block have them. ``are_equal``: any copy of a
    block is the mean of them. ``robust``: which mean, of three and more.
    """
    first, stop = min(copy.first for copy in copies), max(copy.stop for copy in copies)
    weights: list[int | None] = []
    tensors: dict[str, Tensor] = {}
    for block in range(first, stop):
        here = [copy for copy in copies if copy.first <= block < copy.stop]
        weights.append(sum(copy.samples for copy in here) if here else None)
        if not here:  # between the first blocks and the last, which an owner keeps
            continue
        useful = here[:1] if are_equal else [copy for copy in here if copy.samples] or here
        names = [f"model.{name}" for name in chain.tensor_names(block, block + 1)]
        for name in names + (_optimizer_tensors(chain, block, useful) if with_optimizer else []):
            tensors[name], _ = mean_of_copies([(copy.samples, copy.tensors[name]) for copy in useful], robust)
    metadata = {
        "format": FORMAT,
        "round": str(round),
        "first": str(first),
        "stop": str(stop),
        "samples": json.dumps(weights),
    }
    return tensors, metadata


def _optimizer_tensors(chain: Chain, block: int, copies: Sequence[Copy]) -> list[str]:
    owned = frozenset(chain.tensor_names(block, block + 1))
    states = [frozenset(n for n in copy.tensors if n.startswith("optim.") and _owner(n) in owned) for copy in copies]
    return sorted(states[0]) if all(state == states[0] for state in states) else []


def _owner(name: str) -> str:
    """The parameter that a tensor of the optimizer belongs to: ``optim.KEY.NAME``."""
    return name.split(".", 2)[2]


class RoundAverage:
    """Of one round: ``add`` every peer's update, in the order of their ids: the same order gives the same bits.

    ``planned``: by peer, of its blocks the most samples that it can have trained them on; ``sizes``: the root mean
    square of each tensor of the model before the round, as far as that is known; ``robust``: which mean; ``training``:
    whose optimizer's state may be in an update.

    Updates are kept as they came until ``pieces``, so give them where they lie in a mapped file.
    """

    def __init__(
        self,
        chain: Chain,
        round: int,
        planned: Mapping[str, Mapping[int, int]] | None = None,
        sizes: Mapping[str, float] | None = None,
        robust: Robust = "none",
        training: TrainingConfig | None = None,
    ) -> None:
        self._own = training if training is not None and training.own_optimizer else None
        self._planned = planned
        self._sizes = sizes or {}
        self._robust: Robust = robust
        self._given: dict[str, dict[int, int]] = {}
        """By peer, the samples of its blocks."""
        self._chain = chain
        self._round = round
        self._like = chain.model.state_dict()
        self._weights = [0] * len(chain.blocks)
        self._copies: dict[str, list[tuple[str, int, Tensor]]] = {}
        """By tensor: whose, of how many samples, and it."""
        self._counted: dict[str, list[tuple[float, int]]] = {}
        """By peer, of each tensor: how much of it counted, and how many numbers it has."""

    @torch.no_grad()
    def add(
        self, peer: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], apart: Sequence[Copy] = ()
    ) -> None:
        """Take a peer's update in. Raises ``RemoteError`` for one that does not fit, and then changes nothing.

        ``apart``: the copies that the update is the mean of, where they are at hand: each counts by itself.
        """
        if peer in self._given:
            raise RemoteError("update", f"a second one of {peer}")
        given = self._read(metadata)
        self._check_samples(peer, given)
        model, states = split_state(tensors)
        self._check(model, states, given)
        self._given[peer] = given
        for block, weight in given.items():
            self._weights[block] += weight
            for name in self._chain.tensor_names(block, block + 1):
                names = [f"model.{name}", *(f"optim.{key}" for key in states if key.partition(".")[2] == name)]
                held = [copy for copy in apart if copy.first <= block < copy.stop and copy.samples]
                for full in names:
                    found = self._copies.setdefault(full, [])
                    if held and all(full in copy.tensors for copy in held):
                        found += [(peer, copy.samples, copy.tensors[full]) for copy in held]
                    elif weight:
                        found.append((peer, weight, tensors[full]))

    def _read(self, metadata: Mapping[str, str]) -> dict[int, int]:
        """The samples of each block that it has."""
        if metadata.get("format") != FORMAT:
            raise RemoteError("update", "no update of a round")
        if read_count(metadata, "round") != self._round:
            raise RemoteError("update", f"of round {metadata['round']}, expected {self._round}")
        first, stop = read_count(metadata, "first"), read_count(metadata, "stop")
        if not 0 <= first < stop <= len(self._chain.blocks):
            raise RemoteError("update", f"blocks {first} to {stop} of {len(self._chain.blocks)}")
        text = metadata.get("samples", "")
        try:
            weights = json.loads(text) if len(text) <= 1 << 16 else None
        except (ValueError, RecursionError):
            weights = None
        if not isinstance(weights, list) or len(weights) != stop - first:
            raise RemoteError("update", "not a number of samples for each block")
        given = {block: weight for block, weight in enumerate(weights, first) if weight is not None}
        if not given or not all(type(weight) is int and 0 <= weight <= MAX_SAMPLES for weight in given.values()):
            raise RemoteError("update", "a number of samples that can't be one")
        return given

    def _check_samples(self, peer: str, given: Mapping[int, int]) -> None:
        if self._planned is None:
            return
        planned = self._planned.get(peer, {})
        if given.keys() != planned.keys():
            raise RemoteError("update", f"blocks {sorted(given)[:1]} to {sorted(given)[-1:]}: others than planned")
        for block, samples in given.items():
            if samples > planned[block]:
                raise RemoteError("update", f"{samples} samples in block {block}, which has {planned[block]} a round")

    def suspect(self) -> str:
        """Where the blocks' samples differ, a peer that says fewer than planned of a block that lacks some; or ""."""
        most = max(self._weights)
        for peer, given in sorted(self._given.items()):
            planned = (self._planned or {}).get(peer, given)
            if any(self._weights[block] < most and samples < planned[block] for block, samples in given.items()):
                return peer
        return ""

    def _check(self, model: Mapping[str, Tensor], states: Mapping[str, Tensor], blocks: Iterable[int]) -> None:
        names = frozenset(name for block in blocks for name in self._chain.tensor_names(block, block + 1))
        if model.keys() != names:
            odd = sorted(model.keys() ^ names)
            raise RemoteError("tensor-names", f"an update misses or should not have {odd[:3]}")
        for name, tensor in model.items():
            like = self._like[name]
            if tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise RemoteError("tensor-shape", f"{name}: {tensor.dtype} {tuple(tensor.shape)}")
            _check_numbers(name, tensor, self._sizes.get(name))
        for key, tensor in states.items():
            kind, _, name = key.partition(".")
            shape, dtype = self._state_of(kind, name) if name in names else ((), None)
            if tensor.dtype != dtype:
                raise RemoteError("update", f"optimizer state {key!r:.80} is unknown")
            if tuple(tensor.shape) != shape:
                raise RemoteError("tensor-shape", f"optimizer state {key!r:.80}: {tuple(tensor.shape)}")
            if tensor.is_floating_point() or self._own is None:
                _check_numbers(key, tensor)

    def _state_of(self, kind: str, name: str) -> tuple[tuple[int, ...], torch.dtype | None]:
        """Shape and type of what an optimizer remembers of a parameter."""
        like = self._like[name]
        if self._own is None:
            return () if kind == "step" else tuple(like.shape), torch.float32
        slot = slots_of(self._own, torch.empty(1, dtype=like.dtype).expand(like.shape)).get(kind)
        return (slot.shape, slot.dtype) if slot is not None else ((), None)

    @torch.no_grad()
    def pieces(
        self, bounds: Iterable[int], *, rounds: int, samples_before: int, optimizer: str
    ) -> list[tuple[dict[str, Tensor], dict[str, str]]]:
        """The start of the next round in runs of blocks, cut at ``bounds``.

        ``samples_before``: that the rounds before were trained on. Raises ``RemoteError`` where the blocks' samples
        differ, so that an update is missing, or where there are none.
        """
        total = self._weights[0]
        if total == 0 or any(weight != total for weight in self._weights):
            counts = sorted(set(self._weights))
            raise RemoteError("update", f"blocks of {counts[:4]} samples: the average would not be of all units")
        edges = sorted({0, len(self._chain.blocks), *bounds})
        progress = Progress(self._round + 1, rounds, samples_before + total, {})
        made = []
        for first, stop in itertools.pairwise(edges):
            names = self._chain.tensor_names(first, stop)
            owned = frozenset(names)
            wanted = [f"model.{name}" for name in names]
            # The optimizer's tensors only where every unit's are in them.
            wanted += sorted(
                name
                for name, copies in self._copies.items()
                if name.startswith("optim.") and _owner(name) in owned and sum(num for _, num, _ in copies) == total
            )
            tensors = {name: self._mean(name) for name in wanted}
            made.append((tensors, piece_metadata(first, stop, progress, optimizer)))
        return made

    def _mean(self, name: str) -> Tensor:
        copies = self._copies[name]
        mean, factors = mean_of_copies([(samples, tensor) for _, samples, tensor in copies], self._robust)
        for (peer, _, tensor), factor in zip(copies, factors, strict=True):
            self._counted.setdefault(peer, []).append((factor, tensor.numel()))
        return mean

    def counted(self) -> dict[str, float]:
        """After ``pieces``, of whom not all counted: how much of what it gave did, for each number of it."""
        found = {}
        for peer, counted in self._counted.items():
            if any(factor < 1 for factor, _ in counted):
                found[peer] = sum(factor * num for factor, num in counted) / sum(num for _, num in counted)
        return found


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Of a snapshot's tensors of the model, by their names in it; of whole numbers the least. For ``RoundAverage``."""
    return {
        name.removeprefix("model."): root_mean_square(t) if t.is_floating_point() else float(t.min())
        for name, t in tensors.items()
        if name.startswith("model.") and t.numel()
    }


def _check_numbers(name: str, tensor: Tensor, before: float | None = None) -> None:
    if not tensor.is_floating_point():
        if bool((tensor < min(0.0, before or 0.0)).any()):  # a constant may be below zero
            raise RemoteError("tensor-negative", f"{name}: a counter below zero")
        return
    size = root_mean_square(tensor)
    if size == before == math.inf and not bool(tensor.isnan().any()):
        return  # a mask of minus infinity
    if not math.isfinite(size):
        raise RemoteError("tensor-not-finite", name)
    follows_data = before is None or name.endswith(("running_mean", "running_var"))
    limit = MAX_STATISTICS_RATIO * (1 + (before or 0.0)) if follows_data else 1 + MAX_GROWTH * (before or 0.0)
    if size > limit:
        raise RemoteError("tensor-norm", f"{name}: root mean square {size:.3g}, limit {limit:.3g}")
    if name.endswith(("running_var",)) and bool((tensor < 0).any()):
        raise RemoteError("tensor-negative", f"{name}: a variance below zero")
