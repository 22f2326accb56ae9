"""What a program can do with p2ptrain: run a peer, look at a group, harvest, load and evaluate a model.

Invariant: the command line does nothing that can't be done from here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from p2ptrain.core.harvest import Harvest
from p2ptrain.errors import DataError, NobodyError, NotCoveredError, UserError
from p2ptrain.loggers import Logger
from p2ptrain.net.group.admission import visitors_door
from p2ptrain.net.group.kept import load_kept
from p2ptrain.net.keys import OPEN_GROUP, Group, read_code
from p2ptrain.runtime import harvest as harvesting
from p2ptrain.runtime.node.journal import Line
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.peer_life import live
from p2ptrain.runtime.status import Status, snapshot_status
from p2ptrain.runtime.status import snapshot_peer as snapshot_peer
from p2ptrain.runtime.stopping import UNTIL_S, StoppedPeer, stop_group
from p2ptrain.runtime.store.kept import KeptJob, kept_job, newest_job, why_none
from p2ptrain.web.server import PageServer
from p2ptrain.web.view import View
from p2ptrain.words import listed

if TYPE_CHECKING:
    from torch import nn

    from p2ptrain.learning.checkpoint import ModelCard
    from p2ptrain.learning.evaluation import Evaluation
    from p2ptrain.learning.use.prediction import Prediction

WAIT_S = 8.0


def default_state_dir() -> Path:
    """Where a peer keeps its key, its group and its snapshots unless told otherwise. Raises ``UserError``."""
    home = os.environ.get("P2PTRAIN_STATE")
    if home:
        return Path(os.path.expanduser(home))
    try:
        return Path("~/.local/state/p2ptrain").expanduser()
    except RuntimeError:  # a user that the system does not know, as in some containers
        raise UserError(
            "this user has no home directory: name a directory for this device's key and snapshots with --state or "
            "P2PTRAIN_STATE"
        ) from None


def find_group(code: str | None = None, *, is_open: bool = False, state_dir: Path | str | None = None) -> Group:
    """The group of a join code, of ``--open``, or the one that this device used last. Raises ``UserError``.

    Of a code that this device left for a newer one of the same group, it is the newer one.
    """
    if is_open:
        return OPEN_GROUP
    known = load_kept(_state(state_dir))
    if code is not None:
        group = read_code(code)
        return known.group if known is not None and known.was(group) else group
    if known is None:
        raise UserError("no join code: enter one with `p2ptrain group join`, or make one with `p2ptrain group new`")
    return known.group


def _state(state_dir: Path | str | None) -> Path:
    return Path(state_dir).expanduser() if state_dir is not None else default_state_dir()


async def run_peer(
    group: Group,
    options: PeerOptions,
    *,
    network: NetworkConfig | None = None,
    state_dir: Path | str | None = None,
    until: asyncio.Event | None = None,
    on_start: Callable[[PeerNode], None] = lambda node: None,
    on_line: Callable[[Line], None] | None = None,
    loggers: Sequence[Callable[[], Logger]] = (),
) -> None:
    """Run one peer until its job is done, the model written and the lingering over, or ``until`` is set.

    A new join code of the group's founder is followed. ``on_start`` is called once the peer listens, and again when it
    has left its job for the group's, or its code for a new one; ``on_line`` with every line of its journal. ``loggers``
    make what is told the figures of the training beside the state directory's ``metrics.jsonl``: ``p2ptrain.loggers``.

    Raises ``UserError`` for what the person at this device can mend.
    """
    path, network, until = _state(state_dir), network or NetworkConfig(), until or asyncio.Event()
    await live(group, options, network, path, until, on_start, on_line, loggers)


async def status(
    group: Group,
    *,
    network: NetworkConfig | None = None,
    wait_s: float = WAIT_S,
    state_dir: Path | str | None = None,
) -> Status:
    """Look around. Raises ``UserError`` when nobody answers in time."""
    async with observing(group, network, state_dir) as node:
        await node.look_around(wait_s)
        return snapshot_status(node)


async def stop(
    group: Group,
    *,
    network: NetworkConfig | None = None,
    wait_s: float = WAIT_S,
    until_s: float = UNTIL_S,
    say: Callable[[str], None] = lambda text: None,
    state_dir: Path | str | None = None,
) -> tuple[StoppedPeer, ...]:
    """Ask all peers to end their round, write the model and go. Raises ``UserError`` when nobody answers in time."""
    async with observing(group, network, state_dir) as node:
        return await stop_group(node, wait_s, until_s, say)


@asynccontextmanager
async def serving_page(
    view: View,
    listen: str = "127.0.0.1",
    port: int = 0,
    on_failure: Callable[[BaseException], None] = lambda error: None,
) -> AsyncIterator[PageServer]:
    """The page, as long as the context lasts. Raises ``UserError`` where it can't be served."""
    server = PageServer(view, on_failure=on_failure)
    try:
        await server.start(listen, port)
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def observing(
    group: Group, network: NetworkConfig | None = None, state_dir: Path | str | None = None
) -> AsyncIterator[ObserverNode]:
    """An observer that is gone again afterwards.

    ``state_dir``: of this device, which has to be in where the group lets devices in one by one.
    """
    door = visitors_door(group, _state(state_dir) if group.approves else None)
    node = ObserverNode(group, network or NetworkConfig(), door)
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
    state_dir: Path | str | None = None,
    without: Sequence[str] = (),
    best: bool = False,
) -> Harvest:
    """Collect the freshest copy of every part and assemble the global model.

    Where nobody answers, or who does lacks a part, it comes from what this device keeps of the group in its state
    directory. ``Harvest.source`` says which it was.

    ``allow_user_code``: whether a model function of the user's own may run here; its name allows that one only.
    ``without``: names or ids of devices whose contributions are left out. ``best``: not the last state, but the best
    one that the group has looked at while it trained (``Harvest.best``).

    Raises ``NotCoveredError`` naming the parts that nobody has, unless ``partial``; ``UserError`` otherwise.
    """
    try:
        async with observing(group, network, state_dir) as node:
            result = await harvesting.of_group(
                node, wait_s, partial=partial, without=without, best=best, allow_user_code=allow_user_code, say=say
            )
            num_peers = len(node.observer.alive())
    except (NobodyError, NotCoveredError) as error:
        kept = await asyncio.to_thread(kept_job, _state(state_dir), group.tag)
        if kept is None:
            raise
        say(f"{str(error).partition(';')[0]}: looking at what this device keeps")
        try:
            return await asyncio.to_thread(_harvest_kept, [kept], partial, allow_user_code, without, best)
        except NotCoveredError as own:
            raise NotCoveredError(f"{error}. This device by itself: {own}") from None
    who = f"the group, {num_peers} device{'s' if num_peers != 1 else ''} of which answered"
    return dataclasses.replace(result, source=who)


async def harvest_kept(
    state_dirs: Sequence[Path | str],
    *,
    partial: bool = False,
    allow_user_code: bool | str = False,
    without: Sequence[str] = (),
    best: bool = False,
) -> Harvest:
    """The same from state directories alone, of one device or of several: of the job that was trained last there.

    Raises ``NotCoveredError`` naming the parts that none of them has, unless ``partial``; ``UserError`` otherwise.
    """
    kept = []
    for path in state_dirs:
        found = await asyncio.to_thread(newest_job, _state(path))
        if found is None:
            raise UserError(f"{why_none(_state(path))}; name the folder that a peer had as --state")
        kept.append(found)
    if len({each.job.id for each in kept}) > 1:
        named = ", ".join(f"{path}: {each.job.id}" for path, each in zip(state_dirs, kept, strict=True))
        raise UserError(f"these state directories had different jobs last ({named}); harvest them one by one")
    return await asyncio.to_thread(_harvest_kept, kept, partial, allow_user_code, without, best)


def _harvest_kept(
    kept: Sequence[KeptJob], partial: bool, code: bool | str, without: Sequence[str], best: bool
) -> Harvest:
    allowed = harvesting.may_run(kept[0].job, code)
    return harvesting.from_state(kept, partial=partial, allow_user_code=allowed, without=without, best=best)


def save_harvest(path: Path | str, result: Harvest, *, force: bool = True) -> None:
    """One ``.safetensors`` file with the names of the plain module, and everything needed to use it as metadata.

    Without ``force`` a file that is there gives way only to a model of the same job that is as far: ``UserError``.
    """
    if not force:
        harvesting.check_replaces(Path(path), result)
    harvesting.save(Path(path), result)


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
            f"{listed([f'{name} {n}' for split in splits for name, n in source.counts(split).items() if n]) or 'none'}"
        )
    batches = (part.tensors(slice(i, i + batch_size)) for part in parts for i in range(0, len(part), batch_size))
    return evaluation.evaluate(model, batches, len(card.data.classes))


def predict(
    model: nn.Module, card: ModelCard, paths: Sequence[Path | str], *, top: int = 3
) -> Iterator[Prediction | DataError]:
    """What the model takes pictures or recordings for, those in folders too; a ``DataError`` for each unreadable one.

    Raises ``UserError`` for a model of text, ``DataError`` for a folder without any.
    """
    from p2ptrain.learning.use import prediction

    return prediction.predict(model, card.data, prediction.files_in(map(Path, paths), card.data), top=top)


def generate(
    model: nn.Module,
    card: ModelCard,
    prompt: str,
    *,
    num_bytes: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[int]:
    """The bytes with which a model of text goes on from ``prompt``. Raises ``UserError`` for another model."""
    from p2ptrain.learning.use import generation

    return generation.generate(
        model,
        card.data,
        prompt.encode("utf-8", "surrogateescape"),
        num_bytes=num_bytes,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
