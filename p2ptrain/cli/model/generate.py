"""``p2ptrain generate``: a harvested language model writes on.

Invariant: what is printed is the prompt and what follows it; bytes that are no text are shown as such.
"""

from __future__ import annotations

import codecs
import time
from pathlib import Path

import click

from p2ptrain.cli.shared.options import UserPath, allow_option, json_option, load_allowed, print_json, warning_of

EXAMPLES = """\b
Examples:
  p2ptrain generate global.safetensors --prompt "Once upon a time"
  p2ptrain generate global.safetensors --prompt "To be" --bytes 500 --temperature 0
"""


@click.command(epilog=EXAMPLES)
@click.argument("model_file", type=UserPath(), metavar="MODEL")
@click.option("--prompt", default="", metavar="TEXT", help="What the text begins with. [default: nothing]")
@click.option(
    "--bytes",
    "num_bytes",
    type=click.IntRange(1, 1_000_000),
    default=200,
    metavar="N",
    help="So many bytes are written; a plain letter is one. [default: 200]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 100),
    default=0.8,
    metavar="T",
    help="Higher is more surprising; 0 always takes the likeliest. [default: 0.8]",
)
@click.option(
    "--top-k",
    type=click.IntRange(0, 256),
    default=0,
    metavar="K",
    help="Draw from the K likeliest bytes only. [default: from all]",
)
@click.option("--seed", type=int, metavar="S", help="Makes the text repeatable. [default: another text each time]")
@allow_option
@json_option
def command(
    model_file: Path,
    prompt: str,
    num_bytes: int,
    temperature: float,
    top_k: int,
    seed: int | None,
    allow_model: str,
    as_json: bool,
) -> None:
    """A harvested language model writes on from a prompt, as it goes."""
    model, card = load_allowed(model_file, allow_model)
    if warning := warning_of(card):
        click.echo(f"{model_file}: {warning}", err=True)
    from p2ptrain import api

    seed = (time.time_ns() if seed is None else seed) % 2**63
    written = api.generate(model, card, prompt, num_bytes=num_bytes, temperature=temperature, top_k=top_k, seed=seed)
    if as_json:
        print_json({"prompt": prompt, "text": bytes(written).decode("utf-8", "replace"), "seed": seed})
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i, byte in enumerate(written):
        if i == 0:
            click.echo(prompt, nl=False)
        click.echo(_shown(decoder.decode(bytes([byte]))), nl=False)
    click.echo(_shown(decoder.decode(b"", final=True)))


def _shown(text: str) -> str:
    """What a model writes moves no cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
