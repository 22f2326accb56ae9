"""Activations and gradients in fewer bytes: what comes back, what rounding leaves behind, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from slice_group import Group, cuts, pipeline
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.learning.slice_codec import Coding, Encoder, decode
from p2ptrain.learning.slice_rows import Spec


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SPECS = {"0": Spec(((4, 3),), torch.float32), "y": Spec(((),), torch.int64, range(5))}


def rows(seed: int = 0, num: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.linspace(-12, 12, num)  # of a row's numbers
    return {
        "0": torch.randn(num, 4, 3, generator=generator) * sizes[:, None, None],
        "y": torch.arange(num) % 5,
    }


def there_and_back(coding: Coding, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    payload = Encoder(coding, feedback=False).encode(tensors, 0)
    decoded, num_rows = decode(coding, payload, SPECS)
    assert num_rows == len(tensors["0"]) and decoded.keys() == tensors.keys()
    assert all(decoded[name].dtype == tensor.dtype for name, tensor in tensors.items())
    return decoded


@pytest.mark.parametrize(
    ("coding", "error", "row_bytes"), [("none", 0.0, 48), ("fp16", 2**-11, 28), ("int8", 1 / 254, 16)]
)
def test_what_comes_back_is_close_in_every_row(coding: Coding, error: float, row_bytes: int) -> None:
    tensors = rows()
    decoded = there_and_back(coding, tensors)
    largest = tensors["0"].abs().amax((1, 2), keepdim=True)
    assert bool(((decoded["0"] - tensors["0"]).abs() <= error * 1.001 * largest).all())
    assert torch.equal(decoded["y"], tensors["y"])
    payload = Encoder(coding, feedback=False).encode(tensors, 0)
    assert sum(t.nbytes for t in payload.values()) == 6 * (row_bytes + 8)


@pytest.mark.parametrize("coding", ["none", "fp16", "int8"])
def test_zeros_large_numbers_and_single_numbers_survive(coding: Coding) -> None:
    tensors = {"0": torch.zeros(3, 4, 3), "y": torch.zeros(3, dtype=torch.int64)}
    assert torch.equal(there_and_back(coding, tensors)["0"], tensors["0"])
    tensors["0"][1] = 3e38
    tensors["0"][2] = -1e-30
    assert torch.allclose(there_and_back(coding, tensors)["0"], tensors["0"], rtol=1e-3, atol=0)
    payload = Encoder(coding, feedback=True).encode({"0": torch.tensor([1.0, -2.0])}, 0)
    decoded, num_rows = decode(coding, payload, {"0": Spec(((),), torch.float32)})
    assert num_rows == 2 and torch.allclose(decoded["0"], torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("coding", ["none", "fp16", "int8"])
def test_what_is_sent_shares_no_memory_with_what_it_was(coding: Coding) -> None:
    tensors = rows()
    payload = Encoder(coding, feedback=False).encode({n: t[1:3] for n, t in tensors.items()}, 1)
    before = {name: tensor.clone() for name, tensor in payload.items()}
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) and tensor.is_contiguous() for name, tensor in payload.items())


def test_with_feedback_the_rounding_errors_of_a_batch_do_not_add_up() -> None:
    sums: dict[bool, float] = {}
    gradients = [rows(seed)["0"] for seed in range(40)]
    for feedback in (False, True):
        encoder = Encoder("int8", feedback=feedback)
        total = torch.zeros(6, 4, 3, dtype=torch.float64)
        for gradient in gradients:
            decoded, _ = decode("int8", encoder.encode({"0": gradient}, 0), {"0": SPECS["0"]})
            total += decoded["0"].double() - gradient.double()
        steps = torch.stack(gradients).abs().amax((0, 2, 3)) / 127
        sums[feedback] = float((total.abs().amax((1, 2)) / steps).max())
    assert sums[True] < 0.6 < 1.0 < sums[False]  # half a step is the last rounding


def test_errors_are_kept_by_rows_and_for_one_batch() -> None:
    encoder = Encoder("int8", feedback=True)
    alone = Encoder("int8", feedback=True).encode({"0": rows(1)["0"]}, 0)
    for unit in range(5):
        for row in (0, 6):
            encoder.encode({"0": rows(unit)["0"]}, row)
    assert encoder.error_bytes == 2 * rows()["0"].nbytes
    assert not torch.equal(encoder.encode({"0": rows(1)["0"]}, 0)["0:q8"], alone["0:q8"])
    encoder.reset()
    assert encoder.error_bytes == 0
    assert torch.equal(encoder.encode({"0": rows(1)["0"]}, 0)["0:q8"], alone["0:q8"])
    for coding in ("none", "fp16"):
        other = Encoder(coding, feedback=True)  # type: ignore[arg-type]
        other.encode({"0": rows()["0"]}, 0)
        assert other.error_bytes == 0


Change = Callable[[dict[str, Tensor]], object]
DAMAGES: dict[str, tuple[Change, str]] = {
    "not coded": (lambda p: p.update({"0": torch.zeros(6, 4, 3)}) or p.pop("0:q8"), "tensor-names"),
    "no scale": (lambda p: p.pop("0:scale"), "tensor-names"),
    "other coding": (lambda p: p.update({"0:f16": p.pop("0:q8").half()}), "tensor-names"),
    "one too many": (lambda p: p.update({"1:q8": p["0:q8"]}), "tensor-names"),
    "dtype": (lambda p: p.update({"0:q8": p["0:q8"].int()}), "tensor-dtype"),
    "scale dtype": (lambda p: p.update({"0:scale": p["0:scale"].double()}), "tensor-dtype"),
    "shape": (lambda p: p.update({"0:q8": p["0:q8"][:, :2]}), "tensor-shape"),
    "scales": (lambda p: p.update({"0:scale": p["0:scale"][:5]}), "tensor-shape"),
    "scale a number": (lambda p: p.update({"0:scale": p["0:scale"][:, None].expand(6, 3)}), "tensor-shape"),
    "below -127": (lambda p: p["0:q8"].view(-1)[3:4].fill_(-128), "tensor-range"),
    "negative scale": (lambda p: p["0:scale"][1:2].fill_(-1.0), "tensor-negative"),
    "scale nan": (lambda p: p["0:scale"][1:2].fill_(math.nan), "tensor-not-finite"),
    "scale too large": (lambda p: p["0:scale"][1:2].fill_(3e38), "tensor-not-finite"),
    "label": (lambda p: p["y"][1:2].fill_(5), "tensor-range"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_can_not_be_decoded_is_refused(kind: str) -> None:
    damage, reason = DAMAGES[kind]
    payload = Encoder("int8", feedback=False).encode(rows(), 0)
    decode("int8", payload, SPECS)
    damage(payload)
    with pytest.raises(RemoteError) as caught:
        decode("int8", payload, SPECS)
    assert caught.value.reason == reason


def test_half_precision_is_checked_too() -> None:
    payload = Encoder("fp16", feedback=False).encode(rows(), 0)
    payload["0:f16"].view(-1)[0] = math.inf
    with pytest.raises(RemoteError, match="tensor-not-finite"):
        decode("fp16", payload, SPECS)


@pytest.mark.parametrize("name", ["lenet", "gpt_mini"])
def test_coded_training_stays_close_and_takes_fewer_bytes(name: str) -> None:
    plan = pipeline(cuts(name, ((5, 3), (8,), (2, 6))))
    sent: dict[str, int] = {}
    states: dict[str, dict[str, Tensor]] = {}
    for coding in ("none", "fp16", "int8"):
        group = Group(name, plan, activations=coding, gradients=coding)
        start = group.state()
        sent[coding] = 0
        deliver = group.deliver

        def counted(one, coding=coding, deliver=deliver):  # type: ignore[no-untyped-def]
            if one[1].work in ("forward", "backward"):
                sent[coding] += sum(t.nbytes for n, t in one[1].tensors.items() if n != "y")
            deliver(one)

        group.deliver = counted  # type: ignore[method-assign]
        states[coding] = group.run(5).state()
    assert sent["fp16"] < 0.53 * sent["none"] and sent["int8"] < 0.29 * sent["none"]
    far = {coding: 0.0 for coding in states}
    moved = 0.0
    for key in (key for key in start if key.startswith("model.")):
        moved += float((states["none"][key] - start[key]).square().sum())
        for coding, state in states.items():
            far[coding] += float((state[key] - states["none"][key]).square().sum())
    assert 0 < far["fp16"] < 0.005**2 * moved and far["fp16"] < far["int8"] < 0.2**2 * moved
