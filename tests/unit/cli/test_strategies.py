"""``job new --strategy``: settings, and a line that says which."""

from __future__ import annotations

from typing import Any

import pytest

from p2ptrain.cli.shared.strategies import STRATEGIES, USUAL_MU, with_strategy
from p2ptrain.errors import UserError


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("fedavg", {"mode": "replicas"}),
        ("fedprox", {"mode": "replicas", "training__proximal": USUAL_MU}),
        ("fedmedian", {"mode": "replicas", "group__robust": "median"}),
    ],
)
def test_what_it_stands_for(strategy: str, expected: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"mode": None, "group__robust": None, "training__proximal": None}
    words = with_strategy(settings, strategy)
    assert {key: value for key, value in settings.items() if value is not None} == expected
    assert words.startswith(f"--strategy {strategy}: mode")


def test_what_is_given_is_kept_or_refused() -> None:
    settings: dict[str, Any] = {"mode": "replicas", "training__proximal": 0.5}
    with_strategy(settings, "fedprox")
    assert settings["training__proximal"] == 0.5
    for key, value in (("mode", "split"), ("group__robust", "clip")):
        with pytest.raises(UserError, match=f"{value} is another"):
            with_strategy({key: value}, "fedmedian")
    assert with_strategy(settings, None) == "" and set(STRATEGIES) == {"fedavg", "fedprox", "fedmedian"}
