"""Names that others know ways of training together by, and what they are here.

Invariant: a strategy is nothing but settings of a job; what it became is told in a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from p2ptrain.cli.shared.options import F
from p2ptrain.errors import UserError

USUAL_MU = 0.01
"""Of FedProx, where nobody says; its authors tried 0.001 to 1."""
STRATEGIES: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "fedavg": (
        {"mode": "replicas"},
        'mode "replicas": whole models, averaged by gossip, by samples, without a server. What is far off counts less; '
        "--robust none is the plain mean. Mode split averages once a round, as FedAvg itself",
    ),
    "fedprox": (
        {"mode": "replicas", "training__proximal": USUAL_MU},
        'mode "replicas" as of fedavg, and training.proximal: half of it times the squared distance from the '
        "parameters at the round's beginning is added to the loss",
    ),
    "fedmedian": (
        {"mode": "replicas", "group__robust": "median"},
        'mode "replicas", and group.robust = "median": number by number the median of three copies and more, in merges '
        "and at the end; two devices have nothing but their mean",
    ),
}


def strategy_options(function: F) -> F:
    """``--strategy``, and what one of them asks for."""
    for option in (
        click.option(
            "--proximal",
            "training__proximal",
            type=click.FloatRange(0),
            help="FedProx' mu: how much steps are drawn back to the round's first parameters. [default: 0.0]",
        ),
        click.option(
            "--strategy",
            type=click.Choice(list(STRATEGIES)),
            help="A way to train together by its common name, in place of --mode. [default: what --mode says]",
        ),
    ):
        function = option(function)
    return function


def with_strategy(settings: dict[str, Any], strategy: str | None) -> str:
    """Put in what it stands for, where nothing else was given; what it became, or "". Raises ``UserError``."""
    if strategy is None:
        return ""
    stands_for, words = STRATEGIES[strategy]
    for key, value in stands_for.items():
        given = settings.get(key)
        if given is not None and given != value and key != "training__proximal":
            option = key.rpartition("__")[2]
            raise UserError(f"--strategy {strategy} is --{option} {value}, and --{option} {given} is another; give one")
        settings[key] = value if given is None else given
    return f"--strategy {strategy}: {words}"
