"""The room that ``p2ptrain plan --mode split`` asks about: who has samples, who may help, and what the network is like.

Invariant: whatever is said of a peer that there is not, or twice, is an error that names it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from p2ptrain.planning.devices.blocks import ModelProfile
    from p2ptrain.planning.devices.profiles import DeviceProfile
    from p2ptrain.planning.pipeline.task import PairRate, PipelinePeer
    from p2ptrain.planning.split.task import SplitPeer, SplitTask
    from p2ptrain.planning.split.units import Labels, Medium, Tails

USUAL_SAMPLES = 1000


def samples_of(given: tuple[str, ...], names: list[str], helpers: tuple[str, ...]) -> dict[str, int]:
    """Of ``--samples 500`` (everybody's but the helpers') and ``--samples peer=500``. Raises ``UserError``."""
    usual, own = USUAL_SAMPLES, {}
    for each in given:
        name, equals, number = each.rpartition("=")
        if not number.strip().isdigit() or (equals and name.strip() not in names):
            there = ", ".join(names)
            raise UserError(f"--samples {each}: write a number, or PEER=NUMBER with one of {there}")
        if equals:
            own[name.strip()] = int(number)
        else:
            usual = int(number)
    return {name: own.get(name, 0 if name in helpers else usual) for name in names}


def check_helpers(helpers: tuple[str, ...], names: list[str]) -> None:
    """Raises ``UserError``."""
    for name in helpers:
        if name not in names:
            raise UserError(f"--helper {name}: no profile is named so; there are {', '.join(names)}")


def split_task(
    model: ModelProfile,
    profiles: list[tuple[str, DeviceProfile]],
    devices: tuple[PipelinePeer, ...],
    chain: str,
    *,
    batch_size: int,
    micro_batches: int,
    samples: dict[str, int],
    helpers: tuple[str, ...],
    medium: Medium,
    tails: Tails,
    labels: Labels,
    rate_mbit_s: float | None,
    latency_s: float,
    pair_rates: tuple[PairRate, ...],
    optimizer_copies: int,
) -> SplitTask:
    """``devices``: of these profiles, in their order; ``chain``: names the model's blocks; ``helpers``: none = all may
    help."""
    from p2ptrain.planning.split.task import SplitPeer, SplitTask

    if medium == "shared" and rate_mbit_s is None:
        raise UserError("--medium shared: say what the medium carries, all devices together, such as --rate 100")

    def peer_of(profile: DeviceProfile, device: PipelinePeer) -> SplitPeer:
        measured = next((each for each in profile.block_times if each.chain == chain), None)
        codings = dict(measured.codings) if measured is not None else {}
        may_help = not helpers or device.name in helpers
        return SplitPeer(device, samples[device.name], may_help, codings=codings)

    task = SplitTask(
        model,
        tuple(peer_of(profile, device) for (_, profile), device in zip(profiles, devices, strict=True)),
        batch_size,
        micro_batches,
        tails=tails,
        labels=labels,
        medium=medium,
        latency_s=latency_s,
        pair_rates=pair_rates,
        optimizer_copies=optimizer_copies,
    )
    if medium == "shared" and rate_mbit_s is not None:
        task = dataclasses.replace(task, medium_bytes_per_s=rate_mbit_s * 1e6 / 8)
    return task
