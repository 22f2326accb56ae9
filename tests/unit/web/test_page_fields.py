"""The page's scripts read only what they are told: every field that they name is there.

A rule of the scripts makes this checkable: what came from the node is called ``now``, ``group``, ``peer``, ..., and is
read as ``peer.name``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from importlib import resources
from typing import Any

import pytest
from groups import found_in

from p2ptrain.ids import PeerId
from p2ptrain.web.view import NOTHING, View
from p2ptrain.wire.messages import LinkFigure

PATHS: dict[str, tuple[str | int, ...]] = {
    "now": (),
    "next": ("next",),
    "group": ("group",),
    "job": ("group", "job"),
    "plan": ("group", "plan"),
    "flow": ("group", "plan", "flows", 0),
    "coverage": ("group", "coverage"),
    "cell": ("group", "coverage", "cells", 0),
    "harvest": ("group", "harvest"),
    "peer": ("group", "peers", 0),
    "link": ("group", "peers", 0, "links", 0),
    "figures": ("group", "peers", 0, "figures"),
}
"""What each name stands for."""
LANGUAGE = {"length", "map", "filter", "find", "some", "every"}


def example() -> Any:
    found = found_in("replicas")
    links = (LinkFigure(PeerId("b" * 16), 1e6, 0.001),)
    records = tuple(dataclasses.replace(record, links=links) for record in found.records)
    view = View(lambda: dataclasses.replace(found, records=records))
    view.glance()
    return json.loads(view.now()), json.loads(view.news(NOTHING)[0])


def scripts() -> dict[str, str]:
    folder = resources.files("p2ptrain.web").joinpath("page")
    return {each.name: each.read_text(encoding="utf-8") for each in folder.iterdir() if each.name.endswith(".js")}


def read_of(name: str, text: str) -> set[str]:
    """The fields of ``name`` that a script reads."""
    spread = re.findall(rf"\{{([\w, ]+)\}} = {name};", text)
    return {*re.findall(rf"\b{name}\??\.(\w+)", text), *(each.strip() for one in spread for each in one.split(","))}


@pytest.mark.parametrize("name", [*PATHS, "news"])
def test_the_scripts_read_what_there_is(name: str) -> None:
    now, news = example()
    value = news if name == "news" else now
    for step in PATHS.get(name, ()):
        value = value[step]
    fields = set().union(*(read_of(name, text) for text in scripts().values())) - LANGUAGE
    assert fields and fields <= value.keys()


def test_a_field_that_is_not_there_would_be_seen() -> None:
    assert read_of("peer", "peer.name + peer.colour; const { one, two } = peer;") == {"name", "colour", "one", "two"}
