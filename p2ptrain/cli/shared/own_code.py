"""Code of a person's own in a job, on the command line: what parts there may be, and what may run on this device.

Invariant: a device that allows some of it by name runs no other.
"""

from __future__ import annotations

import functools
from typing import Any

import click

from p2ptrain.cli.shared.options import F, allow_option
from p2ptrain.config import Job
from p2ptrain.errors import UserError
from p2ptrain.model_config import flags_to_allow, refused_code


def allow_options(function: F) -> F:
    """``--allow-model`` and ``--allow-code``, as one text: names with commas between them."""

    @functools.wraps(function)
    def joined(*args: Any, allow_model: str, allow_code: tuple[str, ...], **rest: Any) -> Any:
        return function(*args, allowed=",".join(name for name in (allow_model, *allow_code) if name), **rest)

    option = click.option(
        "--allow-code",
        multiple=True,
        metavar="PACKAGE.MODULE:FUNCTION",
        help="A loss, optimizer, schedule or transform of your own that may run on this device; may be given again. "
        "[default: none]",
    )
    return allow_option(option(joined))  # type: ignore[return-value]


def own_parts(function: F) -> F:
    """Options of ``job new`` for parts of training that are a function of one's own."""
    for name, key, what in (
        ("--transform", "data__transform", "changes samples while training, such as x: [N, C, H, W] from 0 to 1"),
        ("--own-schedule", "training__own_schedule", "gives a factor on the learning rate, of step and all steps"),
        ("--own-optimizer", "training__own_optimizer", "makes an optimizer, of parameters and learning rate"),
        ("--loss", "training__loss", "gives the mean loss of logits and labels, in place of cross-entropy"),
    ):
        option = click.option(
            name, key, metavar="PACKAGE.MODULE:FUNCTION", help=f"A function of your own that {what}. [default: none]"
        )
        function = option(function)
    return function


def flags_for(job: Job) -> list[str]:
    """What lets the job's own code run on a device."""
    return flags_to_allow(job.own_code, job.model.name)


def check_job_allowed(job: Job, allowed: str) -> None:
    """Where code is allowed by name, all that the job has must be. Raises ``UserError``."""
    if allowed and (names := refused_code(job.own_code, allowed)):
        raise UserError(
            f"{names[0]} may not run here: allowed is {allowed.replace(',', ', ')} alone; look at what the job names, "
            f"and if it may run here, allow it: {' '.join(flags_for(job))}"
        )
