"""A model in runs of blocks, for the modes that have it so: whether it can be cut, and how it is put together again.

Invariant: every tensor of the global model comes from exactly one run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.core.harvest import Collected, Harvest, MisfitError, PartReport, Snapshot
from p2ptrain.core.plan import Plan
from p2ptrain.errors import JobError, RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import SnapshotRef

if TYPE_CHECKING:
    from torch import Tensor, nn

    from p2ptrain.learning.blocks.chain import Chain


def check_blocks(job: Job, model: nn.Module) -> Mapping[str, Any]:
    """It has to be a chain of blocks, and an own optimizer one that can be divided. Raises ``UserError``."""
    from p2ptrain.learning.blocks.chain import Chain
    from p2ptrain.learning.blocks.costs import profile_blocks
    from p2ptrain.learning.own.divisible import check_divisible
    from p2ptrain.planning.devices.blocks import check_model

    chain = Chain(model, job.data.input_shape)
    check_chain(job, chain)
    check_model(profile_blocks(chain, job.model.name))
    check_divisible(job.training)
    return {}


def check_chain(job: Job, chain: Chain) -> None:
    """Whether the blocks can be trained on the job's classes. Raises ``JobError``."""
    import torch

    from p2ptrain.learning.own.outputs import check_logits

    who = f"model {job.model.name}"
    logits = torch.empty(3, *chain.blocks[-1].outputs[0].shape, device="meta")
    check_logits(logits, len(logits), job.data, who)
    other = {
        name: p.dtype for name, p in chain.model.named_parameters() if p.requires_grad and p.dtype != torch.float32
    }
    if other:
        name, dtype = next(iter(other.items()))
        raise JobError(
            f'{who}: parameter {name!r} is of {str(dtype).removeprefix("torch.")}, and in mode "{job.mode}" parameters '
            'are trained in float32 only; make it float32 (training.precision = "bf16" computes in bfloat16), freeze '
            'it, or train with mode = "replicas"'
        )


def missing(plan: Plan, parts: Mapping[int, list[Snapshot]]) -> list[int]:
    """There is all or nothing."""
    return [] if parts else [part.index for part in plan.parts]


def judged(result: Snapshot) -> tuple[int, float] | None:
    """There is no such thing: each device looks at the model by itself."""
    return None


def harvest_of(
    collected: Collected, num_blocks: int, trainers: Callable[[SnapshotRef], Iterable[str]], *, allow_user_code: bool
) -> Harvest:
    """Runs of blocks side by side, each told of by its first. Raises ``UserError`` for what is not the job's model."""
    job, runs = collected.job, [snapshots[0] for _, snapshots in sorted(collected.parts.items())]
    report = tuple(
        PartReport(
            part=run.holding.part,
            classes=job.data.classes,
            share=run.holding.span / num_blocks,
            trainers=tuple(collected.name_of(PeerId(peer)) for peer in trainers(run.holding)),
            round=run.holding.round,
            rounds=job.training.rounds,
            step=run.holding.step,
            samples=run.holding.samples,
            num_bytes=len(run.data),
        )
        for run in runs
    )
    return Harvest(job, collected.plan, _state_of(job, runs, num_blocks, allow_user_code=allow_user_code), {}, report)


def _state_of(job: Job, runs: Sequence[Snapshot], num_blocks: int, *, allow_user_code: bool) -> dict[str, Tensor]:
    """Each run brings the tensors of its blocks, and no others: whose copy does not is blamed, and nobody else."""
    from p2ptrain.learning.averaging import check_state
    from p2ptrain.learning.blocks.chain import chain_of
    from p2ptrain.learning.models import global_model
    from p2ptrain.learning.snapshots import model_state, read_snapshot

    build = functools.partial(global_model, job, allow_user_code=allow_user_code)
    like: Mapping[str, Tensor] = build().state_dict()
    chain = chain_of(build, job.data.input_shape)
    if len(chain.blocks) != num_blocks:
        raise UserError(
            f"the group cuts {job.model.name} into {num_blocks} blocks, and this device into {len(chain.blocks)}: "
            "harvest on a device with the group's version of the model and of PyTorch"
        )
    state: dict[str, Tensor] = {}
    for run in runs:
        names = chain.tensor_names(run.holding.part, run.holding.part + run.holding.span)
        try:
            tensors = model_state(read_snapshot(run.data)[0])
            check_state(tensors, {name: like[name] for name in names})
        except RemoteError as error:
            message = f"the copy of {run.holding.trainer} does not fit the job's model ({error}); try again"
            raise MisfitError(message, [run.holding]) from None
        state |= tensors
    return {name: state[name] for name in like}
