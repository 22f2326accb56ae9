"""What a program can do with p2ptrain: run a peer, look at a group, harvest, load and evaluate a model.

Invariant: the command line does nothing that can't be done from here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.core.harvest import Harvest
from p2ptrain.core.plan import Plan
from p2ptrain.errors import DataError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.net.keys import OPEN_GROUP, Group, load_group, load_or_make_identity, read_code
from p2ptrain.runtime import harvest as harvesting
from p2ptrain.runtime.node.journal import Journal, Line
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.runtime.node.peer_node import PeerNode, PeerOptions
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.wire.messages import MemberState, Record

if TYPE_CHECKING:
    from torch import nn

    from p2ptrain.learning.checkpoint import ModelCard
    from p2ptrain.learning.evaluation import Evaluation

WAIT_S = 8.0


def default_state_dir() -> Path:
    """Where a peer keeps its key, its group and its snapshots unless told otherwise."""
    home = os.environ.get("P2PTRAIN_STATE")
    return Path(home) if home else Path("~/.local/state/p2ptrain").expanduser()


def find_group(code: str | None, *, is_open: bool = False, state_dir: Path | None = None) -> Group:
    """The group of a join code, of ``--open``, or the one that this device used last. Raises ``UserError``."""
    if is_open:
        return OPEN_GROUP
    if code:
        return read_code(code)
    known = load_group(state_dir or default_state_dir())
    if known is None:
        raise UserError("no join code: give one with --code, or make one with `p2ptrain group new`")
    return known


async def run_peer(
    group: Group,
    options: PeerOptions,
    *,
    network: NetworkConfig | None = None,
    state_dir: Path | None = None,
    until: asyncio.Event | None = None,
    on_start: Callable[[PeerNode], None] = lambda node: None,
    on_line: Callable[[Line], None] | None = None,
) -> None:
    """Run one peer until its job is done and the lingering over, or ``until`` is set; then say goodbye.

    ``on_start`` is called once the peer listens, ``on_line`` with every line of its journal.

    Raises ``UserError`` for what the person at this device can mend.
    """
    state = StateDir(state_dir or default_state_dir())
    try:
        identity = load_or_make_identity(state.path)
        journal = Journal(state.path / "journal.jsonl", on_line=on_line)
        node = PeerNode(identity, group, network or NetworkConfig(), options, state, journal)
        try:
            await node.start()
            on_start(node)
            stopped = asyncio.ensure_future((until or asyncio.Event()).wait())
            finished = asyncio.ensure_future(node.wait_finished())
            await asyncio.wait([stopped, finished], return_when=asyncio.FIRST_COMPLETED)
            for task in (stopped, finished):
                task.cancel()
            await node.leave()
        finally:
            await node.close()
        if node.failure is not None:
            raise node.failure
    finally:
        state.close()


@dataclass(frozen=True, slots=True)
class Status:
    """Everyone that is here, as an observer found them."""

    job: Job | None
    plan: Plan | None
    records: tuple[Record, ...]
    """What all peers known say of themselves, by peer id."""
    states: dict[PeerId, MemberState]
    refused: dict[PeerId, dict[str, int]]
    """Messages that each peer refused, by reason."""


async def status(group: Group, *, network: NetworkConfig | None = None, wait_s: float = WAIT_S) -> Status:
    """Look around. Raises ``UserError`` when nobody answers in time."""
    async with observing(group, network) as node:
        await node.look_around(wait_s)
        return snapshot_status(node)


def snapshot_status(node: ObserverNode) -> Status:
    """What an observer knows now."""
    observer = node.observer
    records = tuple(record for _, record in sorted(observer.records.items()))
    refused = {peer: dict(counts) for peer, counts in observer.peer_refused.items()}
    return Status(observer.job, observer.plan(), records, dict(observer.states), refused)


@asynccontextmanager
async def observing(group: Group, network: NetworkConfig | None = None) -> AsyncIterator[ObserverNode]:
    """An observer that is gone again afterwards."""
    with tempfile.TemporaryDirectory(prefix="p2ptrain-") as directory:
        node = ObserverNode(group, network or NetworkConfig(), Path(directory))
        try:
            await node.start()
            yield node
        finally:
            await node.close()


async def harvest(
    group: Group,
    *,
    network: NetworkConfig | None = None,
    wait_s: float = WAIT_S,
    partial: bool = False,
    allow_user_code: bool | str = False,
    say: Callable[[str], None] = lambda text: None,
) -> Harvest:
    """Collect the freshest copy of every part and assemble the global model.

    ``allow_user_code``: whether a model function of the user's own may run here; its name allows that one only.

    Raises ``NotCoveredError`` naming the parts that nobody has, unless ``partial``; ``UserError`` otherwise.
    """
    async with observing(group, network) as node:
        collected = await harvesting.collect(node, wait_s, partial=partial, say=say)
    allowed = allow_user_code is True or allow_user_code == collected.job.model.name
    return await asyncio.to_thread(harvesting.assemble, collected, allow_user_code=allowed)


def save_harvest(path: Path, result: Harvest) -> None:
    """One ``.safetensors`` file with the names of the plain module, and everything needed to use it as metadata."""
    from p2ptrain.learning.checkpoint import save_model

    lineage = [dataclasses.asdict(part) for part in result.report]
    save_model(path, result.state, result.job, {"lineage": lineage, "plan": result.plan.hash})


def load_model(path: Path | str, *, allow_user_code: bool = False) -> tuple[nn.Module, ModelCard]:
    """A harvested file as a plain ``nn.Module`` in eval mode, and what it says of itself."""
    from p2ptrain.learning import checkpoint

    return checkpoint.load_model(Path(path), allow_user_code=allow_user_code)


def evaluate(
    model: nn.Module,
    card: ModelCard,
    data: str,
    *,
    shard: str = "",
    classes: Sequence[str] = (),
    batch_size: int = 256,
    strict: bool = False,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Accuracy on the test split of a data set, or on all of it where it has none.

    Files that can't be read are left out, and ``say`` is told, by default a warning; ``strict``: they are a
    ``DataError``, as it is if there are no samples.
    """
    from p2ptrain.learning import evaluation
    from p2ptrain.learning.data import Split, load, open_source, select
    from p2ptrain.learning.data.source import listing

    source = open_source(data)
    splits: tuple[Split, ...] = ("test",) if source.num_samples("test") else ("train", "val")
    chosen = [select(source, card.data, split, shard=shard or None, classes=classes or None) for split in splits]
    parts = [
        load(source, card.data, split, indices, strict=strict) for split, indices in zip(splits, chosen, strict=True)
    ]
    for note in (*source.notes(), *(note for part in parts for note in part.notes)):
        (say or warnings.warn)(note)
    if not any(len(part) for part in parts):
        of = f" of {', '.join(classes)}" if classes else ""
        raise DataError(
            f"{data}: no samples{of} to evaluate on in {' and '.join(splits)}; samples there: "
            f"{listing([f'{name} {n}' for split in splits for name, n in source.counts(split).items() if n]) or 'none'}"
        )
    batches = (part.tensors(slice(i, i + batch_size)) for part in parts for i in range(0, len(part), batch_size))
    return evaluation.evaluate(model, batches, len(card.data.classes))
