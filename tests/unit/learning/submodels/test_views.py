"""Views: what put writes is what take took, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2ptrain.errors import LocalError
from p2ptrain.learning.submodels.views import View, put, take


@st.composite
def states_and_views(draw: st.DrawFn) -> tuple[dict[str, Tensor], View]:
    state, axes = {}, {}
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True)):
        shape = draw(st.lists(st.integers(1, 5), max_size=4))
        state[name] = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + 1
        indices = []
        for size in shape:
            chosen = draw(st.none() | st.lists(st.integers(0, size - 1), max_size=size, unique=True))
            indices.append(None if chosen is None else torch.tensor(chosen, dtype=torch.int64))
        axes[name] = tuple(indices)
    return state, View(axes)


def coordinates(shape: torch.Size, axes: tuple[Tensor | None, ...]) -> Tensor:
    """A mask of the view's coordinates, made without the code under test."""
    mask = torch.ones(shape, dtype=torch.bool)
    for axis, index in enumerate(axes):
        if index is not None:
            inside = torch.zeros(shape[axis], dtype=torch.bool)
            inside[index] = True
            mask &= inside.view([-1 if other == axis else 1 for other in range(len(shape))])
    return mask


@settings(max_examples=150, deadline=None)
@given(states_and_views())
def test_put_of_take_is_the_identity(case: tuple[dict[str, Tensor], View]) -> None:
    state, view = case
    part = take(state, view)
    copy = {name: tensor.clone() for name, tensor in state.items()}
    put(part, view, copy)
    assert all(torch.equal(copy[name], state[name]) for name in state)


@settings(max_examples=150, deadline=None)
@given(states_and_views())
def test_put_touches_its_coordinates_and_no_others(case: tuple[dict[str, Tensor], View]) -> None:
    state, view = case
    part = take(state, view)
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    put(part, view, into)
    for name, tensor in state.items():
        mask = coordinates(tensor.shape, view.axes[name])
        assert torch.equal(into[name], torch.where(mask, tensor, torch.zeros(())))
        assert part[name].is_contiguous()
        assert tuple(part[name].shape) == view.shape(name, tensor.shape)
    again = take(into, view)
    assert all(torch.equal(again[name], part[name]) for name in part)


def test_take_copies() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.nn.Parameter(torch.zeros(2))}
    part = take(state, View({"a": (None, None), "b": (torch.tensor([1]),)}))
    part["a"] += 1
    part["b"] += 1
    assert not state["a"].any() and not state["b"].any() and not part["b"].requires_grad


def test_order_of_an_index_is_kept() -> None:
    state = {"a": torch.tensor([[1, 2], [3, 4], [5, 6]])}
    view = View({"a": (torch.tensor([2, 0]), torch.tensor([1]))})
    assert take(state, view)["a"].tolist() == [[6], [2]]


@pytest.mark.parametrize(
    "index",
    [torch.tensor([[0]]), torch.tensor([0.0]), torch.tensor([-1]), torch.tensor([1, 1])],
    ids=["two axes", "float", "negative", "repeated"],
)
def test_a_bad_index_is_refused(index: Tensor) -> None:
    with pytest.raises(LocalError, match="'a'"):
        View({"a": (index,)})


def test_errors_name_the_tensor() -> None:
    state = {"a": torch.zeros(3, 2)}
    view = View({"a": (torch.tensor([0, 2]), None)})
    for bad_state in ({}, {"a": torch.zeros(3)}, {"a": torch.zeros(2, 2)}):
        with pytest.raises(LocalError, match="'a'"):
            take(bad_state, view)
    for bad_part in ({}, {"a": torch.zeros(3, 2)}):
        with pytest.raises(LocalError, match="'a'"):
            put(bad_part, view, state)
