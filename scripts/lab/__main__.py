"""Several unlike devices on this one machine: each with an address, a link, a share of a core and a memory limit.

    sudo .venv/bin/python -m scripts.lab run scripts/lab/files/three-unlike.toml --out results/three-unlike [--repeat 3]
    sudo .venv/bin/python -m scripts.lab calibrate scripts/lab/files/three-unlike.toml
    .venv/bin/python -m scripts.lab check

``run`` makes the devices, measures each one's speed at the job's model beside what its share should give (more than
5 % off is an error), starts a peer on each, carries out the file's events, harvests, evaluates, and takes everything
apart again, also after Ctrl-C or a crash. ``--out`` gets lab.json, job.toml, global.safetensors, logs and journals;
with ``--repeat``, lab.json of all runs, and a folder for the rest of each. Namespaces, shaping and cgroups need Linux,
root, and iproute2; ``check`` tells what is missing. What a lab file may say stands at the top of
scripts/lab/spec.py; examples are in scripts/lab/files/. Run it in the project's root.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import host, jobs, report, session
from lab.quota import sweep
from lab.spec import LabSpec, check_fits, read_lab
from p2ptrain.config import Job
from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.learning.profiling.device import available_cores

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = ("python", "-m", "scripts.lab")
"""As it is typed, but for sudo and where python lies."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=" ".join(COMMAND), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a lab file to the harvested model")
    run.add_argument("file", type=Path)
    run.add_argument("--out", type=Path, help="folder for the results [default: results/NAME-OF-FILE]")
    run.add_argument("--repeat", type=int, default=1, help="runs, one after the other [default: 1]")
    run.add_argument("--central", action="store_true", help="train the same model centrally too, for comparison")
    run.add_argument("--no-calibrate", action="store_true", help="skip the measurement: figures then prove nothing")
    run.add_argument("--points", type=int, default=0, help="evaluate the model at so many times of the run")
    run.add_argument("--json", action="store_true", help="print lab.json in place of tables")
    calibrate = commands.add_parser("calibrate", help="only measure the devices' speeds")
    calibrate.add_argument("file", type=Path)
    commands.add_parser("check", help="tell what this machine lacks for a lab")
    options = parser.parse_args(arguments)
    if getattr(options, "repeat", 1) < 1:
        parser.error(f"--repeat {options.repeat}: at least 1")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what it puts into the background deaf to the first
        signal.signal(number, signal.default_int_handler)
    try:
        if options.command == "check":
            return check()
        return run_lab(options) if options.command == "run" else calibrate_only(options.file)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except P2PTrainError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def check() -> int:
    lacks = host.missing()
    for lack in lacks:
        print(f"missing: {lack}")
    if not lacks:
        print(f"this machine can run labs of up to {available_cores():g} cores in all")
    return 2 if lacks else 0


def run_lab(options: argparse.Namespace) -> int:
    spec = prepared(options.file)
    out = options.out or Path("results") / options.file.stem
    job = jobs.job_of(spec)
    controllers, load_before = host.check_host(), os.getloadavg()[0]
    sweep(controllers)
    painter = Progress(quiet=options.json)
    text, runs, plain = options.file.read_text(encoding="utf-8"), list[report.Run](), dict[str, Any]()
    for number in range(options.repeat):
        folder = out if options.repeat == 1 else out / f"run-{number + 1}"
        say, calibrated, points = painter.say, not options.no_calibrate, options.points
        lab = session.run(spec, job, controllers, folder, say, painter.follow, calibrated=calibrated, num_points=points)
        result = evaluate(spec, job, lab, folder, central=options.central, painter=painter)
        runs.append(report.Run(lab, result))
        plain = report.to_plain(spec, text, [*COMMAND, *sys.argv[1:]], load_before, runs)
        (out / "lab.json").write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if not options.json:
            print(tables(spec, lab, result, folder))
    if options.json:
        print(json.dumps(plain, indent=1, allow_nan=False))
    elif options.repeat > 1:
        print(f"\n{report.plans_line(plain)}")
    return 0


def calibrate_only(file: Path) -> int:
    spec = prepared(file)
    job = jobs.job_of(spec)
    controllers = host.check_host()
    sweep(controllers)
    print(report.speed_table(session.speeds_of(spec, job, controllers, Progress().say)))
    return 0


def prepared(file: Path) -> LabSpec:
    spec = read_lab(file, REPOSITORY / "peers")
    check_fits(spec, available_cores())
    return spec


def evaluate(spec: LabSpec, job: Job, lab: session.LabOutcome, out: Path, *, central: bool, painter: Progress) -> Any:
    """The harvested model on the data's test samples; ``None`` if there are none."""
    from p2ptrain.api import save_harvest
    from p2ptrain.experiment import measure
    from p2ptrain.learning.data import open_source

    save_harvest(out / "global.safetensors", lab.outcome.harvest)
    if not open_source(spec.data).num_samples("test"):
        return None
    experiment = session.experiment_of(spec, job)
    baseline = measure.central_training(experiment, 1, painter.central) if central else None
    return measure.measure(experiment, lab.outcome, baseline, 1)


def tables(spec: LabSpec, lab: session.LabOutcome, result: Any, out: Path) -> str:
    from p2ptrain.ui.demo_table import demo_table

    texts = [report.speed_table(lab.speeds)] if lab.speeds else []
    texts += [report.device_table(spec, lab)]
    texts += ["\n".join(report.log_lines(lab))] if lab.events else []
    texts += [demo_table(result, out)] if result else [f"harvested model in {out / 'global.safetensors'}"]
    return "\n" + "\n\n".join(texts)


class Progress:
    """What happens, on standard error: every event, and where the peers are every few seconds."""

    EVERY_S = 5.0

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._at = quiet, 0.0

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def follow(self, seconds: float, status: Any) -> None:
        if time.monotonic() - self._at > self.EVERY_S:
            self._at = time.monotonic()
            peers = [f"{r.name} {r.phase} round {r.round}" for r in sorted(status.records, key=lambda r: r.name)]
            self.say(f"{seconds:6.0f} s  " + ("; ".join(peers) or "the peers are starting"))

    def central(self, epoch: int, loss: float) -> None:
        self.say(f"central training: epoch {epoch}, loss {loss:.3f}")


if __name__ == "__main__":
    sys.exit(main())
