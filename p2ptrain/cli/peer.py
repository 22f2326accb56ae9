"""``p2ptrain peer``: run a peer on this device.

Invariant: what can be found wrong is said in one line before the peer starts; Ctrl-C or SIGTERM hands over, says
goodbye and exits with 0, a second Ctrl-C ends at once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.options import (
    DATA_HELP,
    DeviceChoice,
    Duration,
    UserPath,
    classes_option,
    group_options,
    network_options,
    progress,
    read_group,
    read_network,
    read_page,
    strict_option,
    web_options,
)
from p2ptrain.cli.shared.outputs import check_output
from p2ptrain.cli.shared.own_code import allow_options, check_job_allowed
from p2ptrain.errors import UserError
from p2ptrain.imports import uncollected

if TYPE_CHECKING:
    from p2ptrain.config import Job
    from p2ptrain.runtime.node.peer_options import PeerOptions

EXAMPLES = """\b
Examples:
  p2ptrain peer --job job.toml --data images:photos/         in the group of `group new` or `group join`
  p2ptrain peer --data audio:words/                          a later device: the job comes from the group
  p2ptrain peer --data images:photos/ --classes cat,dog      only these, and wishing to train them
  p2ptrain peer --data digits --shard 2/5 --profile raspberry-pi-4
  p2ptrain peer --data digits --peer 192.168.1.20:5710       without multicast
  p2ptrain peer                                              no samples: a stage of a pipeline, or others' last layers
"""


@click.command(epilog=EXAMPLES)
@group_options
@click.option(
    "--job",
    "job_file",
    type=UserPath(),
    metavar="FILE",
    help="Job file, on the first device. [default: the job comes from the group]",
)
@click.option(
    "--data",
    default="",
    metavar="SPEC",
    help=f"This device's own samples; pipelines and split training take helpers without. {DATA_HELP} [default: none]",
)
@classes_option("Use only samples of these classes, such as cat,dog, and wish to train them. [default: all]")
@click.option("--shard", default="", metavar="K/N", help="Use the K-th of N shares of the samples. [default: all]")
@click.option(
    "--dirichlet",
    type=click.FloatRange(0, min_open=True),
    metavar="ALPHA",
    help="Cut shares unevenly by class: 0.1 is very uneven, 10 nearly even; with --shard. [default: even shares]",
)
@click.option(
    "--profile",
    metavar="FILE",
    help="What this device can do: a profile, or the name of one in peers/. [default: a quick measurement]",
)
@click.option("--name", metavar="TEXT", help="What others see. [default: the host name]")
@network_options
@click.option(
    "--port",
    type=click.IntRange(0, 65534),
    default=0,
    metavar="N",
    help="TCP port to listen on; the next one is used too. [default: two free ones]",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads to train with. [default: all cores]"
)
@click.option(
    "--device", type=DeviceChoice(["cpu", "cuda", "auto"]), default="auto", help="What trains. [default: auto]"
)
@strict_option
@allow_options
@click.option(
    "--linger",
    "linger_s",
    type=Duration(),
    default="10m",
    metavar="TIME",
    help="How long to go on serving when all is done: 30s, 10m, 2h, forever. [default: 10m]",
)
@click.option(
    "--out",
    type=UserPath(),
    metavar="FILE",
    help="Where the model goes when the group is done. [default: into the state directory]",
)
@click.option("--no-remote-stop", is_flag=True, help="Go on when a member of the group runs `p2ptrain stop`.")
@click.option("--no-model", is_flag=True, help="Write no model when the group is done.")
@click.option(
    "--tensorboard",
    type=UserPath(file_okay=False),
    metavar="DIR",
    help="Write figures of all peers for TensorBoard, too. [default: metrics.jsonl in the state directory alone]",
)
@click.option(
    "--logger",
    "loggers",
    multiple=True,
    metavar="MODULE:CLASS",
    help="Tell a class of your own the figures: see p2ptrain.loggers; may be given again. [default: none]",
)
@click.option(
    "--log-file",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="Write what is told into this file, too, with dates; at 1 MiB a new one is begun, and four old ones are kept. "
    "[default: none]",
)
@click.option("--fresh", is_flag=True, help="Start anew: set aside what this device kept of earlier training.")
@web_options
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the journal: a JSON object a line, for programs.")
def command(
    code: str | None,
    is_open: bool,
    state_dir: Path | None,
    job_file: Path | None,
    data: str,
    classes: tuple[str, ...],
    shard: str,
    dirichlet: float | None,
    profile: str | None,
    name: str | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    port: int,
    threads: int | None,
    device: str,
    strict: bool,
    allowed: str,
    linger_s: float,
    out: Path | None,
    no_remote_stop: bool,
    no_model: bool,
    tensorboard: Path | None,
    loggers: tuple[str, ...],
    log_file: Path | None,
    fresh: bool,
    web: bool,
    web_port: int | None,
    web_listen: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a peer on this device: join the group, train a part, exchange it with others, until the job is done.

    Then the assembled model is written. Ctrl-C hands over and says goodbye; started again, the peer goes on where it
    was, with the job that is kept in its state directory if no device tells it one.
    """
    with uncollected():
        from p2ptrain import api
        from p2ptrain.cli.shared import peer_session
        from p2ptrain.cli.shared.continue_job import new_job_hint
        from p2ptrain.cli.shared.log_file import LogFile
        from p2ptrain.modes.jobs import init_path, load_job
        from p2ptrain.modes.registry import mode_of
        from p2ptrain.runtime.harvest import former_model
        from p2ptrain.runtime.node.peer_options import PeerOptions
        from p2ptrain.runtime.outlet import output_aside
        from p2ptrain.runtime.store.kept import kept_job
        from p2ptrain.words import as_text

    click.get_current_context().with_resource(output_aside())
    group = read_group(code, is_open, state_dir)
    state = state_dir or api.default_state_dir()
    network = read_network(peers, interfaces, no_discovery, port)
    page = read_page(web, web_port, web_listen)
    if not data and (classes or shard or dirichlet):
        raise UserError("--classes, --shard and --dirichlet choose among this device's samples: name those with --data")
    job = load_job(job_file) if job_file else None
    if not data and job is not None and mode_of(job).needs_data:
        raise UserError(f'{job_file}: a job of mode "{job.mode}" is trained on own samples: name them with --data')
    if job:
        check_job_allowed(job, allowed)
    if job and job_file and not (state / job.id).exists():
        hint = new_job_hint(job, job_file, kept_job(state, group.tag))
        if hint:
            progress(f"note: {hint}")
    if is_open:
        progress("OPEN GROUP: anyone in this network can join, read what is exchanged, and take the model")
    if out is not None:
        if no_model:
            raise UserError("--out says where the model goes, --no-model that none is written: give one of them")
        former_model(check_output(out, option="--out"))
    told = peer_session.loggers_of(tensorboard, loggers)
    log = LogFile(log_file) if log_file is not None else None
    peer_session.prepare_state(state, fresh=fresh)
    peer_session.check_ports(network)
    options = PeerOptions(
        data=data,
        name=as_text(name or "").strip(),
        job=job,
        init=init_path(job_file) if job_file else None,
        shard=shard,
        dirichlet=dirichlet or 0.0,
        classes=classes,
        strict=strict,
        num_threads=threads or 0,
        allow_user_code=allowed,
        remote_stop=not no_remote_stop,
        linger_s=linger_s if linger_s < 1e9 else math.inf,
        out=out,
        keep_model=not no_model,
    )
    options = _measured(options, job, profile, device, state, silent=quiet or as_json)
    peer_session.run(
        group,
        options,
        network,
        state,
        told,
        log,
        keep_group=bool(code) and not is_open,
        quiet=quiet,
        as_json=as_json,
        page=page,
    )


def _measured(
    options: PeerOptions, job: Job | None, profile: str | None, device: str, state: Path, *, silent: bool
) -> PeerOptions:
    """The options with what this device can do: from a profile, or measured. Checks the data on the way."""
    import dataclasses

    from p2ptrain.planning.devices.profiles import find_profile, read_profile
    from p2ptrain.runtime.preflight import prepare
    from p2ptrain.words import clean, counted, listed, scaled

    known = read_profile(find_profile(profile)) if profile else None
    options, found = prepare(dataclasses.replace(options, job=job, device=device), state, known)
    if not silent:
        count = f"{sum(found.samples.values()):,} samples of {len(found.samples)} classes"
        val = f", and {found.validation:,} for validation" if found.validation else ""
        own = (
            f"{options.data}: {count} ({listed(list(found.samples))}){val}" if options.data else "none: helps as it can"
        )
        click.echo(f"data     {own}")
        for note in found.notes:
            click.echo(f"         {clean(note, 400)}")
        what = known.name if known else found.accelerator or counted(options.num_threads, "CPU thread")
        speed, memory = options.flops_per_s or 0.0, options.memory_bytes
        click.echo(f"device   {what}: {scaled(speed, 'FLOP/s')}, {scaled(memory, 'B')} of memory")
    return options
