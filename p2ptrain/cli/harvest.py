"""``p2ptrain harvest``: collect the parts, assemble the global model, and say where each part came from.

Invariant: the file is written whole or not at all, and an incomplete model only where it was asked for.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from p2ptrain.cli.shared.options import (
    DATA_HELP,
    UserPath,
    allow_option,
    group_options,
    json_option,
    network_options,
    print_json,
    progress,
    read_group,
    read_network,
    run_async,
    wait_option,
)
from p2ptrain.cli.shared.outputs import check_output
from p2ptrain.words import word

EXAMPLES = """\b
Examples:
  p2ptrain harvest -o global.safetensors
  p2ptrain harvest -o global.safetensors --data images:test/
  p2ptrain harvest -o global.safetensors --partial --json
  p2ptrain harvest -o global.safetensors --without old-laptop     whose part makes the model worse
  p2ptrain harvest -o best.safetensors --best     as the model was where it knew most validation samples
  p2ptrain harvest --from /mnt/laptop-1-state --from /mnt/laptop-2-state     when no device runs
"""


@click.command(epilog=EXAMPLES)
@group_options
@network_options
@wait_option(8.0)
@click.option(
    "-o",
    "--output",
    type=UserPath(),
    default=Path("global.safetensors"),
    metavar="FILE",
    help="Where the model goes. [default: global.safetensors]",
)
@click.option("--force", is_flag=True, help="Overwrite the file, whatever it is.")
@click.option(
    "--from",
    "state_dirs",
    type=UserPath(file_okay=False),
    multiple=True,
    metavar="DIR",
    help="Take it from this state directory of a peer; may be given again. [default: from the group; if it does not "
    "answer, from --state]",
)
@click.option(
    "--best",
    is_flag=True,
    help="Not the last state, but the best that the group has looked at while it trained (training.look_every).",
)
@click.option("--partial", is_flag=True, help="Go on without parts that nobody has: their classes are not recognised.")
@click.option(
    "--without",
    multiple=True,
    metavar="NAME",
    help="Leave out what this device trained, by name or id; may be given again. The report says who makes the model "
    "worse. [default: nobody is left out]",
)
@click.option(
    "--card",
    "card_file",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="Write a model card, too: what the model is and who trained what, as Markdown. [default: none]",
)
@click.option("--data", metavar="SPEC", help=f"Test the model on this. {DATA_HELP} [default: no test]")
@allow_option
@json_option
def command(
    code: str | None,
    is_open: bool,
    state_dir: Path | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    wait_s: float,
    output: Path,
    force: bool,
    state_dirs: tuple[Path, ...],
    best: bool,
    partial: bool,
    without: tuple[str, ...],
    card_file: Path | None,
    data: str | None,
    allow_model: str,
    as_json: bool,
) -> None:
    """Collect the parts and assemble the global model, at any time.

    While the group still trains, the model is as good as it is by then, and the report says that it is half-way. When
    no device answers, it is the model that this one keeps. The file holds the tensors of the plain PyTorch module; one
    that is there gives way to a model of the same job that is as far.
    """
    from p2ptrain import api
    from p2ptrain.cli.shared.model_card import check_card, write_card
    from p2ptrain.runtime import report
    from p2ptrain.runtime.harvest import former_model

    check_output(output)
    if card_file is not None:
        check_card(card_file, output, force=force)
    if not force:
        former_model(output)
    if data:
        from p2ptrain.learning.data import open_source

        open_source(data)  # a wrong path is said now, not after the harvest
    if state_dirs:
        collecting = api.harvest_kept(
            state_dirs, partial=partial, allow_user_code=allow_model, without=without, best=best
        )
    else:
        collecting = api.harvest(
            read_group(code, is_open, state_dir),
            network=read_network(peers, interfaces, no_discovery),
            wait_s=wait_s,
            partial=partial,
            allow_user_code=allow_model,
            say=(lambda text: None) if as_json else progress,
            state_dir=state_dir,
            without=without,
            best=best,
        )
    result = run_async(collecting)
    api.save_harvest(output, result, force=force)
    plain = {"file": str(output), "source": result.source, **report.to_plain(result)}
    if not as_json:
        click.echo(report.render(result))
        click.echo(f"{report.kind(result)} in {output}, from {result.source}")
    tested = ""
    if data:
        model, card = api.load_model(output, allow_user_code=bool(allow_model))
        evaluation = api.evaluate(model, card, data, say=progress)
        plain |= json.loads(evaluation.to_json(card.data.classes))
        tested = f"{100 * evaluation.accuracy:.1f} % of {evaluation.samples:,} test samples are right."
        if not as_json:
            click.echo(evaluation.to_text(card.data.classes))
    elif not as_json:
        file = word(output)
        click.echo(f"next: p2ptrain evaluate {file} --data SPEC, or p2ptrain export {file} --format onnx -o FILE")
    if card_file is not None:
        write_card(card_file, output, tested)
        plain["card"] = str(card_file)
    if as_json:
        print_json(plain)
