"""Batches: order, normalisation, own classes, augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from p2ptrain.config import DataConfig
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.data.audio import SILENCE
from p2ptrain.learning.data.dataset import augment_audio, augment_images

CLASSES = ("a", "b", "c", "d")


def numbered(num: int, size: int = 1) -> Dataset:
    """Every pixel holds the sample's number; labels go round."""
    x = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None, None], (num, 1, size, size)).copy()
    return Dataset(x, np.arange(num) % 4, DataConfig(CLASSES, (1, size, size), mean=(0.0,), std=(1 / 255,)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def numbers(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    return batch[0][:, 0, 0, 0].round().int().tolist()


def test_one_pass_visits_every_sample_once() -> None:
    data = numbered(50)
    batches = list(data.batches(rng(), 16))
    assert [len(y) for _, y in batches] == [16, 16, 16, 2] and data.num_batches(16) == 4
    seen = [n for batch in batches for n in numbers(batch)]
    assert sorted(seen) == list(range(50)) and seen != sorted(seen)
    for batch in batches:
        assert batch[0].dtype == torch.float32 and batch[1].dtype == torch.int64
        assert [n % 4 for n in numbers(batch)] == batch[1].tolist()


def test_an_equal_generator_gives_equal_batches() -> None:
    data = numbered(40, 32)

    def run(seed: int) -> list[torch.Tensor]:
        return [x for x, _ in data.batches(rng(seed), 16, own_classes=[1], own_fraction=0.5, augment=True)]

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(1), strict=True))
    assert not torch.equal(run(1)[0], run(2)[0])


def test_a_lone_last_sample_is_dropped_unless_it_is_all() -> None:
    assert [len(y) for _, y in numbered(33).batches(rng(), 16)] == [16, 16]
    assert [len(y) for _, y in numbered(1).batches(rng(), 16)] == [1]
    assert list(numbered(0).batches(rng(), 16)) == []


def test_own_classes_fill_their_share_of_every_batch() -> None:
    data = numbered(80)
    batches = list(data.batches(rng(), 16, own_classes={2}, own_fraction=0.75))
    assert len(batches) == data.num_batches(16)
    assert all((y == 2).sum() == 12 for _, y in batches)
    own = [n for b in batches for n in numbers(b) if n % 4 == 2]
    assert len(own) == 60 and len(set(own[:20])) == 20  # 20 samples, each seen before any is seen again
    for absent in ([], [9]):
        assert sum(len(y) for _, y in data.batches(rng(), 16, own_classes=absent, own_fraction=0.5)) == 80
    only_own = list(data.batches(rng(), 16, own_classes=range(4), own_fraction=0.5))
    assert sorted(n for b in only_own for n in numbers(b)) == list(range(80))


def test_bad_arguments_are_refused() -> None:
    for options in ({"batch_size": 0}, {"batch_size": 4, "own_fraction": 1.5}):
        with pytest.raises(ValueError):
            next(numbered(4).batches(rng(), **options))
    with pytest.raises(ValueError):
        Dataset(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3, np.int64), numbered(1).contract)


def test_tensors_are_normalised() -> None:
    contract = DataConfig(CLASSES, (3, 2, 2), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    data = Dataset(np.full((5, 3, 2, 2), 255, np.uint8), np.zeros(5, np.int64), contract)
    x, y = data.tensors(np.array([1, 3]))
    assert x.shape == (2, 3, 2, 2) and y.shape == (2,)
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([1.0, 3.0, 0.5]))
    assert len(data.tensors()[1]) == 5 and len(data.tensors(slice(3, 5))[1]) == 2
    halves = Dataset(data.x.astype(np.float16) / 255, data.y, contract)
    assert torch.allclose(halves.tensors()[0], data.tensors()[0])
    assert data.subset(np.array([0])).counts().tolist() == [1, 0, 0, 0]


def test_crops_and_flips_match_a_plain_loop() -> None:
    x = rng(9).integers(1, 256, (64, 3, 28, 30), np.uint8)
    before = x.copy()
    out = augment_images(x, rng(4))
    replay = rng(4)
    top, left = replay.integers(0, 9, (2, 64))
    mirrored = replay.random(64) < 0.5
    for i in range(64):
        padded = np.zeros((3, 36, 38), np.uint8)
        padded[:, 4:-4, 4:-4] = x[i]
        wanted = padded[:, top[i] : top[i] + 28, left[i] : left[i] + 30]
        np.testing.assert_array_equal(out[i], wanted[:, :, ::-1] if mirrored[i] else wanted)
    np.testing.assert_array_equal(x, before)
    assert out.dtype == np.uint8 and 10 < mirrored.sum() < 54


def test_small_images_are_left_alone() -> None:
    data = numbered(20, 8)
    for (x, _), (plain, _) in zip(data.batches(rng(), 8, augment=True), data.batches(rng(), 8), strict=True):
        assert torch.equal(x, plain)


def test_sounds_are_shifted_and_masked() -> None:
    x = rng(1).normal(0, 1, (32, 1, 40, 61)).astype(np.float16)
    out = augment_audio(x, rng(2), mask_value=-5.0)
    assert out.shape == x.shape and out.dtype == np.float16
    masked = (out == -5).all(axis=3)[:, 0]
    assert masked.sum(axis=1).max() == 5 and masked.sum(axis=1).min() == 0
    for i in range(32):
        band = int(np.flatnonzero(~masked[i])[0])
        row, original = out[i, 0, band], x[i, 0, band]
        kept = row[row != np.float16(SILENCE)]
        assert len(kept) >= 55
        assert any(np.array_equal(kept, original[s : s + len(kept)]) for s in range(7))


def test_contract_decides_how_sound_is_augmented() -> None:
    contract = DataConfig(CLASSES, (1, 40, 61), "audio", (-9.0,), (4.0,), augment=True)
    data = Dataset(np.zeros((8, 1, 40, 61), np.float16), np.zeros(8, np.int64), contract)
    (x, _) = next(data.batches(rng(3), 8, augment=True))
    (plain, _) = next(data.batches(rng(3), 8))
    assert (plain == 2.25).all() and (x == 0).any() and x.isfinite().all()


def test_light_augmentation_only_mirrors_pictures_and_only_shifts_sounds() -> None:
    pictures = rng(9).integers(1, 256, (64, 3, 28, 30), np.uint8)
    light = DataConfig(CLASSES, (3, 28, 30), mean=(0.0,) * 3, std=(1.0,) * 3, augment=True, light=True)
    out = next(Dataset(pictures, np.zeros(64, np.int64), light).batches(rng(4), 64, augment=True))[0].numpy() * 255
    found = {(each.tobytes(), each[..., ::-1].tobytes()) for each in pictures}
    mirrored = sum(each.round().astype(np.uint8).tobytes() in {flip for _, flip in found} for each in out)
    same = sum(each.round().astype(np.uint8).tobytes() in {plain for plain, _ in found} for each in out)
    assert mirrored + same == 64 and 15 < mirrored < 49
    sounds = rng(1).normal(0, 1, (32, 1, 40, 61)).astype(np.float16)
    shifted = augment_audio(sounds, rng(2), mask_value=-5.0, light=True)
    assert not (shifted == -5).any() and (shifted != sounds).any()
    for i in range(32):
        kept = shifted[i, 0][:, shifted[i, 0, 0] != np.float16(SILENCE)]
        assert any(np.array_equal(kept, sounds[i, 0][:, s : s + kept.shape[1]]) for s in range(7))
