"""Smaller payloads: bytes as promised, gossip that still agrees on the mean, and checks before use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.learning.averaging import consensus_distance, merge
from p2ptrain.learning.compression import Compressor, decompress, payload_bytes
from p2ptrain.learning.snapshots import read_payload
from p2ptrain.wire import tensorfile

KINDS = ["none", "fp16", "int8", "topk"]


def state(seed: int, offset: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(32, 16, 3, 3, generator=generator) + offset,
        "conv.bias": torch.randn(32, generator=generator),
        "bn.running_var": torch.rand(300, 2, generator=generator),
        "bn.num_batches_tracked": torch.tensor(seed),
    }


def written(payload: dict[str, Tensor]) -> dict[str, Tensor]:
    """As it arrives: nothing that the sender changes later is in it."""
    return read_payload(bytearray(tensorfile.pack({n: t.numpy() for n, t in payload.items()})))


@pytest.mark.parametrize(("kind", "most"), [("none", 1.0), ("fp16", 0.5), ("int8", 0.26), ("topk", 0.0565)])
def test_bytes_are_saved_on_large_tensors_only(kind: str, most: float) -> None:
    plain = state(1)
    payload = Compressor(kind, 0.1).compress(plain)  # type: ignore[arg-type]
    weights = {n: t for n, t in payload.items() if n.startswith("conv.weight")}
    assert payload_bytes(weights) <= most * payload_bytes({"w": plain["conv.weight"]})
    for name in ("conv.bias", "bn.running_var", "bn.num_batches_tracked"):
        assert torch.equal(payload[name], plain[name])


@pytest.mark.parametrize(("kind", "tolerance"), [("none", 0.0), ("fp16", 1e-3), ("int8", 2e-2)])
def test_there_and_back(kind: str, tolerance: float) -> None:
    plain = state(1)
    plain["conv.weight"][3] = 0.0
    tensors, indices = decompress(Compressor(kind).compress(plain), plain)  # type: ignore[arg-type]
    assert not indices and tensors.keys() == plain.keys()
    torch.testing.assert_close(tensors["conv.weight"], plain["conv.weight"], atol=tolerance, rtol=tolerance)


def test_int8_feeds_its_error_back() -> None:
    plain = state(1)
    compressor = Compressor("int8")
    received = [decompress(compressor.compress(plain), plain)[0]["conv.weight"] for _ in range(50)]
    once = (received[0] - plain["conv.weight"]).abs().max()
    mean = (torch.stack(received).mean(0) - plain["conv.weight"]).abs().max()
    assert mean < once / 10


def test_topk_sends_the_largest_changes_since_they_were_last_sent() -> None:
    before = state(1)
    now = {n: t.clone() for n, t in before.items()}
    now["conv.weight"].view(-1)[[5, 77]] += 9.0
    now["conv.weight"].view(-1)[[8, 9]] += 1.0
    compressor = Compressor("topk", 3 / now["conv.weight"].numel(), reference=before)
    picked = [decompress(compressor.compress(now), now) for _ in range(3)]
    chosen = [set(indices["conv.weight"].tolist()) for _, indices in picked]
    assert {5, 77} <= chosen[0] and not {5, 77} & chosen[1] and {8, 9} <= chosen[1]
    values = dict(zip(picked[0][1]["conv.weight"].tolist(), picked[0][0]["conv.weight"].tolist(), strict=True))
    assert values[5] == pytest.approx(float(now["conv.weight"].view(-1)[5]), rel=1e-2)


@pytest.mark.parametrize("num_peers", [2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_gossip_agrees_on_the_mean(kind: str, num_peers: int) -> None:
    generator = torch.Generator().manual_seed(5)
    states = [{"w": torch.randn(24, 50, generator=generator) + 2.0} for _ in range(num_peers)]
    target = torch.stack([s["w"] for s in states]).mean(0)
    start = consensus_distance(states)
    compressors = [Compressor(kind, 0.2) for _ in states]  # type: ignore[arg-type]
    for _ in range(150 * num_peers):
        i, j = torch.randperm(num_peers, generator=generator)[:2].tolist()
        there = decompress(written(compressors[i].compress(states[i])), states[j])
        back = decompress(written(compressors[j].compress(states[j], answering=there[1])), states[i])
        for receiver, (tensors, indices) in ((j, there), (i, back)):
            merge(states[receiver], tensors, 1.0, 1.0, indices=indices)
    reached = torch.stack([s["w"] for s in states]).mean(0)
    distance, drift = {"none": (1e-5, 1e-5), "fp16": (1e-3, 1e-3), "int8": (2e-2, 1e-2), "topk": (2e-2, 1e-2)}[kind]
    assert consensus_distance(states) < distance * start
    assert float((reached - target).abs().max()) < 5 * drift
    assert float((reached - target).square().mean().sqrt()) < drift


def test_one_sided_topk_pushes_agree_too() -> None:
    generator = torch.Generator().manual_seed(5)
    initial = {"w": torch.randn(24, 50, generator=generator)}
    states = [{"w": initial["w"] + torch.randn(24, 50, generator=generator)} for _ in range(8)]
    mean = torch.stack([s["w"] for s in states]).mean(0)
    start = consensus_distance(states)
    compressors, masses = [Compressor("topk", 0.2, reference=initial) for _ in states], [1.0] * 8
    for _ in range(3000):
        i, j = torch.randperm(8, generator=generator)[:2].tolist()
        masses[i] /= 2
        tensors, indices = decompress(compressors[i].compress(states[i]), states[j])
        merge(states[j], tensors, masses[j], masses[i], indices=indices)
        masses[j] += masses[i]
    assert consensus_distance(states) < 0.02 * start
    reached = torch.stack([s["w"] for s in states]).mean(0)
    assert abs(float((reached - mean).mean())) < 0.05  # no push in one direction
    assert float((reached - mean).square().mean().sqrt()) < 0.8 * start  # single coordinates do drift


def payload_with(**changes: Tensor | None) -> dict[str, Tensor]:
    payload: dict[str, Tensor] = {
        "w:at": torch.tensor([1, 5, 9], dtype=torch.int32),
        "w:of": torch.ones(3, dtype=torch.int8),
        "w:scale": torch.ones(1),
        "v:q8": torch.ones(4, 100, dtype=torch.int8),
        "v:scale": torch.ones(4),
    }
    for key, value in changes.items():
        key = key.replace("_", ":")
        payload.pop(key, None)
        if value is not None:
            payload[key] = value
    return payload


@pytest.mark.parametrize(
    "changes",
    [
        {"w_at": torch.tensor([1, 5, 400], dtype=torch.int32)},
        {"w_at": torch.tensor([-1, 5, 9], dtype=torch.int32)},
        {"w_at": torch.tensor([5, 5, 9], dtype=torch.int32)},
        {"w_at": torch.tensor([1, 5], dtype=torch.int32)},
        {"w_at": torch.tensor([1, 5, 9])},
        {"w_at": torch.tensor([], dtype=torch.int32), "w_of": torch.tensor([], dtype=torch.float16)},
        {"w_at": torch.zeros(49, dtype=torch.uint8)},
        {"w_at": torch.zeros(50, dtype=torch.uint8)},
        {"w_at": torch.full((50,), 3, dtype=torch.uint8)},
        {"w_scale": torch.full((1,), float("inf"))},
        {"w_scale": -torch.ones(1)},
        {"w_scale": torch.ones(3)},
        {"w_of": torch.ones(3, dtype=torch.float16)},
        {"w_of": None},
        {"v_scale": None},
        {"v_scale": torch.ones(5)},
        {"v_scale": -torch.ones(4)},
        {"v_scale": torch.full((4,), float("nan"))},
        {"v_q8": torch.ones(4, 99, dtype=torch.int8)},
        {"v_q8": torch.ones(4, 100)},
        {"x": torch.ones(1)},
        {"w_f16": torch.ones(400, dtype=torch.float16)},
    ],
)
def test_unsound_payloads_are_refused(changes: dict[str, Tensor | None]) -> None:
    like = {"w": torch.zeros(4, 100), "v": torch.zeros(4, 100)}
    decompress(payload_with(), like)
    with pytest.raises(RemoteError):
        decompress(payload_with(**changes), like)
