"""Activations and gradients in fewer bytes: what comes back, what rounding leaves behind, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pipeline_group import Group, cuts, pipeline
from torch import Tensor

from p2ptrain.config import Coding
from p2ptrain.errors import RemoteError
from p2ptrain.learning.pipeline.codec import GROUP, Encoder, decode
from p2ptrain.learning.pipeline.rows import Spec

SPECS = {"0": Spec(((4, 3),), torch.float32), "y": Spec(((),), torch.int64, range(5))}


def rows(seed: int = 0, num: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.linspace(-12, 12, num)  # of a row's numbers
    return {
        "0": torch.randn(num, 4, 3, generator=generator) * sizes[:, None, None],
        "y": torch.arange(num) % 5,
    }


def there_and_back(coding: Coding, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    payload = Encoder(coding, feedback=False).encode(tensors)
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
    payload = Encoder(coding, feedback=False).encode(tensors)
    assert sum(t.nbytes for t in payload.values()) == 6 * (row_bytes + 8)


@pytest.mark.parametrize("coding", ["none", "fp16", "int8"])
def test_zeros_large_numbers_and_single_numbers_survive(coding: Coding) -> None:
    tensors = {"0": torch.zeros(3, 4, 3), "y": torch.zeros(3, dtype=torch.int64)}
    assert torch.equal(there_and_back(coding, tensors)["0"], tensors["0"])
    tensors["0"][1] = 3e38
    tensors["0"][2] = -1e-30
    assert torch.allclose(there_and_back(coding, tensors)["0"], tensors["0"], rtol=1e-3, atol=0)
    payload = Encoder(coding, feedback=True).encode({"0": torch.tensor([1.0, -2.0])})
    decoded, num_rows = decode(coding, payload, {"0": Spec(((),), torch.float32)})
    assert num_rows == 2 and torch.allclose(decoded["0"], torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("coding", ["none", "fp16", "int8"])
def test_what_is_sent_shares_no_memory_with_what_it_was(coding: Coding) -> None:
    tensors = rows()
    payload = Encoder(coding, feedback=False).encode({n: t[1:3] for n, t in tensors.items()})
    before = {name: tensor.clone() for name, tensor in payload.items()}
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) and tensor.is_contiguous() for name, tensor in payload.items())


def maps(seed: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, side, side, generator=generator)


def returned(rows: Tensor, *, feedback: bool) -> Tensor:
    payload = Encoder("int8", feedback=feedback).encode({"0": rows})
    return decode("int8", payload, {"0": Spec((tuple(rows.shape[1:]),), torch.float32)})[0]["0"]


def test_with_feedback_rounding_errors_do_not_add_up_along_a_map() -> None:
    rows = maps(0, 16)
    groups = rows.view(4, 3, -1, GROUP)
    step = groups.abs().amax(3) / 126
    errors = {kind: (returned(rows, feedback=kind) - rows).view(4, 3, -1, GROUP) for kind in (False, True)}
    # Of any run of positions from the start of a group, not only of all of them.
    sums = {kind: (error.cumsum(3).abs().amax(3) / step).max() for kind, error in errors.items()}
    assert sums[True] < 0.51 < 2.0 < sums[False]
    assert bool((errors[True].abs() <= 1.001 * step.unsqueeze(3)).all())


def test_what_a_smooth_filter_sees_of_a_map_is_nearer_with_feedback() -> None:
    """A weight's gradient is the sum over positions of its input times what is sent."""
    rows = maps(1, 16)
    inputs = torch.nn.functional.interpolate(maps(2, 4), size=16, mode="bilinear") + 1.0
    errors = {kind: ((returned(rows, feedback=kind) - rows) * inputs).sum((2, 3)).norm() for kind in (False, True)}
    assert errors[True] < 0.6 * errors[False]


@pytest.mark.parametrize("shape", [(3, 7, 9), (5, 4, 4), (8, 64), (130,), ()])
def test_feedback_is_for_maps_of_a_group_or_more(shape: tuple[int, ...]) -> None:
    rows = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(returned(rows, feedback=True), returned(rows, feedback=False))
    assert not torch.equal(returned(maps(0, 8), feedback=True), returned(maps(0, 8), feedback=False))


@pytest.mark.parametrize("coding", ["none", "fp16", "int8"])
def test_what_a_row_becomes_hangs_on_nothing_else(coding: Coding) -> None:
    whole, encoder = maps(0, 9), Encoder(coding, feedback=True)
    spec = {"0": Spec(((3, 9, 9),), torch.float32)}
    together, _ = decode(coding, encoder.encode({"0": whole}), spec)
    apart = [decode(coding, encoder.encode({"0": whole[row : row + 1]}), spec)[0]["0"] for row in (2, 0, 3, 1)]
    assert torch.equal(together["0"][[2, 0, 3, 1]], torch.cat(apart))


def test_a_large_number_costs_only_its_neighbours_precision() -> None:
    rows = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))  # the last group has 8 numbers
    rows[:, 0, 0] = 1e4
    error = (returned(rows, feedback=False) - rows).flatten(1).abs()
    assert float(error[:, GROUP:].max()) < 0.02 and float(error[:, 1:GROUP].max()) > 0.5


def test_numbers_not_below_zero_come_back_twice_as_close() -> None:
    rows = maps(0, 8).relu()
    payload = Encoder("int8", feedback=False).encode({"0": rows})
    assert payload["0:u8"].dtype == torch.uint8 and payload["0:u8"].shape == rows.shape
    error = (returned(rows, feedback=False) - rows).flatten(2).abs()
    assert bool((error <= rows.flatten(2).amax(2, keepdim=True) / 509).all())
    assert torch.equal(returned(rows, feedback=False) == 0, rows < rows.flatten(2).amax(2)[..., None, None] / 510)


Change = Callable[[dict[str, Tensor]], object]
DAMAGES: dict[str, tuple[Change, str]] = {
    "not coded": (lambda p: p.update({"0": torch.zeros(6, 4, 3)}) or p.pop("0:i8"), "tensor-names"),
    "no scale": (lambda p: p.pop("0:scale"), "tensor-names"),
    "other coding": (lambda p: p.update({"0:f16": p.pop("0:i8").half()}), "tensor-names"),
    "one too many": (lambda p: p.update({"1:i8": p["0:i8"]}), "tensor-names"),
    "dtype": (lambda p: p.update({"0:i8": p["0:i8"].int()}), "tensor-dtype"),
    "scale dtype": (lambda p: p.update({"0:scale": p["0:scale"].double()}), "tensor-dtype"),
    "shape": (lambda p: p.update({"0:i8": p["0:i8"][:, :2]}), "tensor-shape"),
    "both": (lambda p: p.update({"0:u8": p["0:i8"].to(torch.uint8)}), "tensor-names"),
    "unsigned in name": (lambda p: p.update({"0:u8": p.pop("0:i8")}), "tensor-dtype"),
    "scales": (lambda p: p.update({"0:scale": p["0:scale"][:5]}), "tensor-shape"),
    "too many scales": (lambda p: p.update({"0:scale": p["0:scale"].expand(6, 3)}), "tensor-shape"),
    "no groups": (lambda p: p.update({"0:scale": p["0:scale"][:, 0]}), "tensor-shape"),
    "below -127": (lambda p: p["0:i8"].view(-1)[3:4].fill_(-128), "tensor-range"),
    "negative scale": (lambda p: p["0:scale"][1:2].fill_(-1.0), "tensor-negative"),
    "scale nan": (lambda p: p["0:scale"][1:2].fill_(math.nan), "tensor-not-finite"),
    "scale too large": (lambda p: p["0:scale"][1:2].fill_(3e38), "tensor-not-finite"),
    "label": (lambda p: p["y"][1:2].fill_(5), "tensor-range"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_can_not_be_decoded_is_refused(kind: str) -> None:
    damage, reason = DAMAGES[kind]
    payload = Encoder("int8", feedback=False).encode(rows())
    decode("int8", payload, SPECS)
    damage(payload)
    with pytest.raises(RemoteError) as caught:
        decode("int8", payload, SPECS)
    assert caught.value.reason == reason


def test_half_precision_is_checked_too() -> None:
    payload = Encoder("fp16", feedback=False).encode(rows())
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


def test_feedback_is_of_gradients_alone_and_can_be_left_out() -> None:
    plan = pipeline(cuts("resnet20", ((8,), (8,), (8,))), units=2)  # 16 x 16 and 8 x 8 cross its cuts
    names = {"activations": "int8", "gradients": "int8"}
    sent: dict[bool, list[dict[str, Tensor]]] = {}
    for feedback in (True, False):
        group = Group("resnet20", plan, gradient_feedback=feedback, **names)  # type: ignore[arg-type]
        sent[feedback] = []
        deliver = group.deliver

        def kept(one, messages=sent[feedback], deliver=deliver):  # type: ignore[no-untyped-def]
            messages += [
                {one[1].work: t} for t in (one[1].tensors.get("0:u8"), one[1].tensors.get("0:i8")) if t is not None
            ]
            deliver(one)

        group.deliver = kept  # type: ignore[method-assign]
        group.run(1)
    pairs = list(zip(sent[True], sent[False], strict=True))
    assert len(pairs) == 2 * 2 * 2
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[work], other[work]) == (work == "forward") for work in one)
