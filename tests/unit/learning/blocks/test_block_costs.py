"""What blocks cost: counts that add up to the whole model's, and measured times that end and are remembered."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import UserError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.costs import profile_blocks
from p2ptrain.learning.blocks.flops import memory_bytes, training_flops
from p2ptrain.learning.models import TEXT_MODELS, build_model
from p2ptrain.learning.profiling import block_times, stopwatch
from p2ptrain.learning.profiling import cache as times_cache
from p2ptrain.learning.profiling.block_times import measure_blocks, slowdown_now
from p2ptrain.learning.profiling.coding_times import MOST_ROWS, time_codings
from p2ptrain.planning.devices.blocks import BlockTimes, check_model, check_times, extrapolated
from p2ptrain.planning.pipeline.fleet import MESSAGE_BYTES

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("name", ["lenet", "vgg11_bn", "resnet20", "mobilenetv2", "bert_small", "gpt_mini"])
def test_blocks_add_up_to_the_model(name: str) -> None:
    shape = (1, 1, 64) if name in TEXT_MODELS else SHAPE
    with torch.device("meta"):
        model = build_model(name, input_shape=shape, num_classes=10)
    profile = profile_blocks(Chain(model, shape), name)
    check_model(profile)
    flops = training_flops(model, shape)
    assert sum(block.forward_flops for block in profile.blocks) == flops.forward
    assert sum(block.backward_flops for block in profile.blocks) == flops.backward
    assert profile.parameter_bytes == sum(p.nbytes for p in model.parameters())
    assert sum(block.buffer_bytes for block in profile.blocks) == sum(b.nbytes for b in model.buffers())
    assert profile.input_bytes == math.prod(shape) * 4
    assert profile.num_cuts == len(profile.blocks) - 1
    assert profile.least_samples == (1 if name in (*TEXT_MODELS, "lenet") else 2)
    # The same storages as the whole model's, but for the two largest, which that counts once more.
    stored = sum(block.stored_activation_bytes for block in profile.blocks) + profile.input_bytes
    slope = (memory_bytes(model, shape, 32, "sgd") - memory_bytes(model, shape, 16, "sgd")) / 16
    assert 0.6 * slope < stored < slope


def test_a_chain_by_hand() -> None:
    layers = (nn.Linear(4, 6, bias=False), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Linear(5, 2))
    layers[4].weight.requires_grad_(False)
    first, second, third = profile_blocks(Chain(nn.Sequential(*layers), (4,)), "own").blocks
    assert (first.forward_flops, first.backward_flops) == (48, 48)
    assert (second.forward_flops, second.backward_flops) == (60, 120)
    assert (first.parameter_bytes, first.buffer_bytes) == (4 * (24 + 12), 4 * 12 + 8)
    assert (third.parameter_bytes, third.buffer_bytes) == (4 * 2, 4 * 10)  # the weight is held, not trained
    assert (first.activation_bytes, second.activation_bytes, third.activation_bytes) == (24, 20, 8)
    assert (first.least_samples, second.least_samples, third.least_samples) == (2, 1, 1)
    # Kept: what the ReLU puts out and the mean and deviation of its 6 channels (in a batch of two), the norm's output;
    # nothing of the second layer's, because the third's weight is frozen; the logits.
    assert first.stored_activation_bytes == 24 + 24 + 24
    assert second.stored_activation_bytes == 0
    assert third.stored_activation_bytes == 8


def test_a_model_in_eval_mode_costs_what_it_costs_in_training() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    profile = profile_blocks(Chain(model, (4,)), "own")
    assert [block.least_samples for block in profile.blocks] == [2, 1]
    assert not any(module.training for module in model.modules()), "and it stays in that mode"


class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() < 1e9 else x


def test_a_model_that_only_runs_with_numbers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), ByValue())
    first, second = profile_blocks(Chain(model, (4,)), "own").blocks
    assert (first.forward_flops, second.forward_flops, second.backward_flops) == (32, 32, 64)
    assert all(p.grad is None for p in model.parameters())


class Ticks:
    """A clock that moves by one at every look."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def ticking(clock: Ticks) -> dict[str, Ticks]:
    """A process that gets half of a core, in turns longer than any run: only the sums show it."""
    return {"clock": clock, "cpu_clock": Ticks(clock.step_s / 2)}


def chain_of(name: str = "lenet", width: float = 0.1) -> Chain:
    shape = (1, 1, 16) if name in TEXT_MODELS else SHAPE
    with torch.device("meta"):
        return Chain(build_model(name, input_shape=shape, num_classes=4, width=width), shape)


@pytest.mark.parametrize("name", ["lenet", "vgg11_bn", "gpt_mini"])
def test_times_of_blocks_that_dont_exist(name: str) -> None:
    chain = chain_of(name)
    times = measure_blocks(chain, name, batch_sizes=(4, 1, 2, 2), budget_s=600, **ticking(Ticks(0.001)))
    check_times(times, profile_blocks(chain, name), "here")
    assert times.batch_sizes == (1, 2, 4)
    blocks = [block.parameter_bytes for block in profile_blocks(chain, name).blocks]
    steps = sum(num_bytes > 0 for num_bytes in blocks)  # each of one tick, and another to empty the gradient
    assert times.update_s_per_byte == pytest.approx(steps * 2 * 0.001 / sum(blocks))
    assert all(
        second == pytest.approx(0.001) for rows in (times.forward_s, times.backward_s) for r in rows for second in r
    )


def test_measuring_ends() -> None:
    chain = chain_of()
    clock = Ticks()
    times = measure_blocks(chain, "lenet", batch_sizes=(2, 4, 8), budget_s=10, **ticking(clock))
    assert times.batch_sizes == (2,)
    assert clock.now < 36 * len(chain.blocks)  # three runs of each block, and of the optimizer on it


@pytest.mark.parametrize("budget_s", [0.0, 600.0])
def test_how_slow_a_device_is_now_is_told_by_a_few_blocks(budget_s: float) -> None:
    chain = chain_of("vgg11_bn")
    times = measure_blocks(chain, "vgg11_bn", batch_sizes=(2, 4), budget_s=600, **ticking(Ticks(0.001)))
    clock = Ticks(0.003)
    assert slowdown_now(chain, times, TrainingConfig(), budget_s=budget_s, **ticking(clock)) == pytest.approx(3.0)
    looks = 13 * (len(chain.blocks) if budget_s else 1)  # three runs of a block, both ways, and one at the end
    assert clock.now == pytest.approx(0.003 * (1 + looks))


def test_a_machine_that_gets_slower_makes_no_batch_size_look_slow() -> None:
    """It is some three times as slow in the end."""
    chain, clock = chain_of(), Ticks()

    def work() -> float:
        now = clock()
        return now * (1 + now / 400)

    times = measure_blocks(chain, "lenet", batch_sizes=(2, 4, 8), budget_s=10**6, clock=clock, cpu_clock=work)
    assert 600 < clock.now < 1000
    sums = [sum(there) + sum(back) for there, back in zip(times.forward_s, times.backward_s, strict=True)]
    assert max(sums) < 1.1 * min(sums)


def test_blocks_add_up_to_what_their_runs_took_on_average() -> None:
    watch = stopwatch.Stopwatch(torch.device("cpu"), Ticks(), Ticks())
    watch.time(lambda: None)
    assert watch.stretch == 1.0
    assert watch.typical(runs(9.0, 1.0, 1.0, 1.0, 2.0, 100.0)) == 1.0  # the first warms up, the last is an outlier
    assert watch.stretch == pytest.approx((1 + 1 + 1 + 2 + stopwatch.OUTLIER) / 5)


def test_runs_in_which_the_heap_grew_do_not_count_but_where_it_always_does_all_count() -> None:
    watch = stopwatch.Stopwatch(torch.device("cpu"), Ticks(), Ticks())
    grew = [*runs(1.0, 1.0, 1.2), *runs(5.0, 6.0, 7.0, faults=5000)]
    assert watch.typical(grew) == 1.0 and watch.stretch == 1.0
    assert watch.typical(runs(9.0, 5.0, 6.0, 7.0, faults=5000)) == 6.0


def test_blocks_are_timed_until_enough_runs_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = stopwatch.Stopwatch(torch.device("cpu"), Ticks(), Ticks())
    faults = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(stopwatch, "_num_faults", lambda: next(faults))
    assert watch.time(lambda: None)[0].faults == 1000
    late = 0.0
    assert all(watch.wants(each, late) for each in ([], runs(1.0, 1.0), [*runs(1.0, 1.0), *runs(9.0, faults=5000)]))
    assert not watch.wants(runs(1.0, 1.0, 1.0), late)
    assert not watch.wants([*runs(1.0, 1.0), *runs(*[9.0] * (stopwatch.NUM_RUNS - 1), faults=5000)], late)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_block_s_tensors_are_held_at_a_time(optimizer: Literal["sgd", "adamw"]) -> None:
    """Without waiting for Python's collector, which may come late: traced modules refer to themselves."""
    chain = chain_of("gpt_mini", width=1.0)
    gc.collect()
    gc.freeze()  # what there was before is not looked through
    gc.disable()
    most = 0

    def look() -> float:
        nonlocal most
        most = max(most, held_bytes())
        return 0.0

    training = TrainingConfig(optimizer=optimizer)
    try:
        measure_blocks(chain, "gpt_mini", batch_sizes=(1,), training=training, clock=look, cpu_clock=lambda: 0.0)
        left = held_bytes()
    finally:
        gc.enable()
        gc.unfreeze()
    sizes = [block.parameter_bytes for block in profile_blocks(chain, "gpt_mini").blocks]
    assert left == 0
    assert 0 < most < 8 * max(sizes) < 3 * sum(sizes)  # a block, its gradients, optimizer state, activations; and one


def held_bytes() -> int:
    """Of all tensors that Python knows of, by where they lie."""
    found = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, nn.Parameter) and not each.is_meta:
            found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return sum(found.values())


def test_coding_is_timed_by_what_it_took_by_the_clock() -> None:
    """Of a stage message; of coded rows more fit into one."""
    chain = chain_of("vgg11_bn", width=1.0)
    num_bytes = chain.blocks[(len(chain.blocks) - 1) // 2].outputs[0].num_bytes
    most = [min(MOST_ROWS, MESSAGE_BYTES // size) for size in (num_bytes, num_bytes * 17 // 64)]
    assert most[0] < most[1]
    watch = stopwatch.Stopwatch(torch.device("cpu"), *ticking(Ticks(0.001)).values())
    found = time_codings(chain, watch)
    assert found.keys() == {"none", "fp16", "int8"}
    for coding, rows in zip(("none", "int8"), most, strict=True):
        seconds = [watch.stretch * each for each in found[coding]]
        assert seconds == pytest.approx([0.001 / 2 / (rows * num_bytes)] * 2)


def runs(*seconds: float, faults: int = 3) -> list[stopwatch.Run]:
    return [stopwatch.Run(each, faults) for each in seconds]


def test_times_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cache" / "times.json"
    one = measure_blocks(chain_of(), "lenet", batch_sizes=(2,), codings=("int8", "fp16"), cache=file)
    assert all(second > 0 for second in one.forward_s[0])
    assert min(one.activation_s_per_byte, one.gradient_s_per_byte) > 0
    other = measure_blocks(chain_of(width=0.2), "lenet", batch_sizes=(2,), cache=file, **ticking(Ticks()))
    content = json.loads(file.read_text())
    assert len(content["times"]) == 2
    assert list(file.parent.iterdir()) == [file]
    with monkeypatch.context() as patch:
        patch.setattr(block_times, "_measure", lambda *_: pytest.fail("measured again"))
        assert measure_blocks(chain_of(), "lenet", batch_sizes=(2,), codings=("int8", "fp16"), cache=file) == one
        plain = measure_blocks(chain_of(), "lenet", batch_sizes=(2,), codings=("none", "none"), cache=file)
        assert plain.forward_s == one.forward_s and plain.activation_s_per_byte > 0
        assert plain.activation_s_per_byte != one.activation_s_per_byte
        assert measure_blocks(chain_of(width=0.2), "lenet", batch_sizes=(2,), cache=file) == other
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert (
        measure_blocks(chain_of(), "lenet", batch_sizes=(2,), codings=("int8", "fp16"), cache=file, **ticking(Ticks()))
        != one
    )


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": "other"}', "entry"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "times.json"
    one = measure_blocks(chain_of(), "lenet", batch_sizes=(2,), cache=file, **ticking(Ticks()))
    if damage == "entry":
        content = json.loads(file.read_text())
        (entry,) = content["times"].values()
        entry["forward_s"][0].pop()
        damage = json.dumps(content)
    file.write_text(damage)
    assert measure_blocks(chain_of(), "lenet", batch_sizes=(2,), cache=file, **ticking(Ticks())) == one
    assert json.loads(file.read_text())["format"] == times_cache.CACHE_FORMAT


def test_a_file_that_cant_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(UserError, match="can't be written"):
        measure_blocks(
            chain_of(), "lenet", batch_sizes=(2,), cache=tmp_path / "folder" / "times.json", **ticking(Ticks())
        )


# --- what a device had no time to measure ---


def times_of(sizes: tuple[int, ...], *blocks: tuple[float, ...]) -> BlockTimes:
    """Of blocks, each at all sizes; backward takes twice as long."""
    forward = tuple(zip(*blocks, strict=True))
    return BlockTimes(sizes, forward, tuple(tuple(2 * seconds for seconds in row) for row in forward), 1e-9, 2e-9, 3e-9)


FAST = times_of((2, 4, 8), (1.0, 1.5, 2.5), (1.0, 2.0, 4.0))


def test_larger_batches_take_a_weak_device_as_much_longer_as_the_others() -> None:
    weak = extrapolated(times_of((2,), (20.0,), (5.0,)), [FAST])
    assert weak == times_of((2, 4, 8), (20.0, 30.0, 50.0), (5.0, 10.0, 20.0))
    assert extrapolated(FAST, [weak, FAST]) == FAST


def test_of_several_others_the_median_counts_and_noise_has_bounds() -> None:
    others = [FAST, times_of((2, 8), (1.0, 3.0), (1.0, 0.5)), times_of((2, 8), (1.0, 9.0), (0.0, 1.0))]
    weak = extrapolated(times_of((2,), (10.0,), (10.0,)), others)
    assert weak.batch_sizes == (2, 4, 8)
    assert weak.forward_s == ((10.0, 10.0), (15.0, 20.0), (30.0, pytest.approx(22.5)))
    odd = extrapolated(times_of((2,), (10.0,), (10.0,)), [times_of((2, 4), (1.0, 0.2), (1.0, 7.0))])
    assert odd.forward_s == ((10.0, 10.0), (10.0, 20.0)), "not at all at least, in proportion at most"
    unlike = times_of((3, 8), (1.0, 2.0), (1.0, 2.0))
    assert extrapolated(times_of((2,), (10.0,), (10.0,)), [unlike]).batch_sizes == (2,)
