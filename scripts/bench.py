#!/usr/bin/env python3
"""Benchmarks of p2ptrain on this machine, each beside a baseline measured in the same session.

    scripts/bench.py list
    scripts/bench.py NAME... [--out results/] [--repeat 3] [--more] [--tiny]
    scripts/bench.py NAME... --redraw [--out results/]

Prints a table and writes ``NAME.json``: the machine, versions, every repetition's raw figures, medians and spread; and
``NAME.png``, a picture of them, if matplotlib is there (extra ``bench``). A run that is cut off leaves what it measured
in ``NAME.partial.json``. Everything runs on the loopback interface of
this machine; close other programs for steady figures. ``--tiny`` only shows that a benchmark works: its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks.common import Settings, measure, redraw
from benchmarks.plots import HOW_TO

from p2ptrain.errors import P2PTrainError

BENCHMARKS = {
    "wire": "MB/s and CPU seconds per GB of codec, transport and blob transfer, beside plain TCP",
    "memory": "memory of a peer's two processes, idle and training, beside plain torch",
    "startup": "seconds from process start to group, plan and first training step",
    "gossip_round": "seconds of one gossip exchange by model and compression, beside a plain exchange of equal bytes",
    "tasks": "class sub-models in a lab of unlike devices, beside central training and gossip of the whole model",
    "tasks_cifar": "the same on CIFAR-10 with VGG-11 (hours)",
    "overlap-own": "peers whose classes overlap: tasks, replicas, auto beside the best alone and central; an own CNN",
    "overlap-resnet20": "the same with ResNet-20 (an hour)",
    "overlap-vgg11": "the same with VGG-11 (hours)",
    "overlap-digits": "the same with spoken digits and DS-CNN",
    "pipeline": "depth slices in a lab of unlike devices: throughput beside prediction, equal split, one device alone",
    "pipeline_mobilenet": "the same with MobileNetV2 in place of VGG-11",
    "pipeline_wired": "VGG-11 over links of 1 Gbit/s: what is left where they hardly hold anybody up",
    "pipeline_text": "a transformer in depth slices, beside prediction, data parallel, equal split, one device alone",
    "pipeline_memory": "a model that no device alone has the memory for, in depth slices on three of them",
    "replan": "a device gets slow while it trains in depth slices: the new plan, beside a group that starts afresh",
    "slices_accuracy": "depth slices: accuracy by schedule and compression between stages, beside a single device",
    "planner": "what planning a pipeline costs, and what the plan promises beside three ways to do without",
    "neighbours": "p2ptrain, hivemind and torchft on one workload: accuracy, seconds, memory, bytes, and a kill -9",
    "scale": "10 to 5,000 peers in virtual time: seconds, rounds and bytes, beside heartbeats and a central average",
    "gossip": "replicas of 2 to 8 real peers: bytes, accuracy and consensus by compression, beside central training",
}


def find(name: str) -> Any:
    """The module of a benchmark, or, of ``module-case``, one of its named cases."""
    module, _, case = name.partition("-")
    found = importlib.import_module(f"benchmarks.{module}")
    return found.NAMED[case] if case else found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=["list", "all", *BENCHMARKS])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for NAME.json and NAME.png")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of baseline and measured thing, in turn")
    parser.add_argument("--more", action="store_true", help="repeat so often again, on top of what NAME.json holds")
    parser.add_argument("--tiny", action="store_true", help="a setting that only shows that the benchmark works")
    parser.add_argument("--redraw", action="store_true", help="only make NAME.png again, from NAME.json")
    options = parser.parse_args(arguments)
    if "list" in options.names:
        for name, what in BENCHMARKS.items():
            print(f"{name:<20}{what}")
        return 0
    if options.repeat < 1:
        parser.error(f"--repeat {options.repeat}: at least 1")
    status = 0
    for name in BENCHMARKS if "all" in options.names else options.names:
        module = find(name)
        if options.redraw:
            print(redraw(name, module, options.out) or HOW_TO)
            continue
        try:
            result = measure(name, module, Settings(options.repeat, options.tiny, options.more), options.out)
        except P2PTrainError as error:
            print(f"bench.py: {error}", file=sys.stderr)
            return 2
        status = 1 if result["incomplete"] else status
    return status


if __name__ == "__main__":
    sys.exit(main())
