"""The pages that a reader is sent to: their links lead somewhere, their commands exist, and README stays short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from p2ptrain.cli.main import cli

ROOT = Path(__file__).resolve().parents[3]
OWN_MODELS = "p2ptrain/learning/own/README.md"
PAGES = (
    *("README.md", "p2ptrain/README.md", "peers/README.md", OWN_MODELS),
    *("scripts/README.md", "scripts/figures/README.md"),
)
MOST_LINES = 150
"""Of README: what a stranger reads in two minutes."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """Words of every line of code blocks that calls p2ptrain, without what is said behind it."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("p2ptrain ")]


def test_readme_is_short_and_names_set_up_and_tests() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= MOST_LINES
    assert "scripts/setup.sh" in text and "scripts/test.sh" in text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_is_there(page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", text_of(page))
    assert links
    for link in links:
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES[:4])
def test_commands_and_options_exist(page: str) -> None:
    found = commands(text_of(page))
    assert found
    for words in found:
        command: click.Command = cli
        while isinstance(command, click.Group):
            below = command.get_command(click.Context(command), words[0])
            assert below is not None, words
            command, words = below, words[1:]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= options, words
