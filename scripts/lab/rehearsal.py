"""Times of a model's blocks on each device, measured before a lab runs, by all devices at once, as they are to train.

What a peer does first in a pipeline, it does here in a process that imported torch outside of its device: on a tenth
of a core that alone takes a minute. The times are the same as a peer measures, by the same code, in the file that it
remembers them in; and beside something that takes what a peer's node takes when it only stands by.

    python -m lab.rehearsal FILE < JOB.json      (started by ``rehearse``; measures once it is told to)
    python -m lab.rehearsal                      (stands by)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lab.host import environment
from lab.placement import device_groups
from lab.quota import Controllers
from lab.spec import Device
from p2ptrain.config import Job
from p2ptrain.errors import P2PTrainError
from p2ptrain.learning.profiling.allocator import training_environment
from p2ptrain.learning.profiling.device import available_cores

STANDBY_SHARE, STANDBY_TURN_S = 0.045, 0.002
"""Of a core, in turns of so long. Nodes of a group of four, of whom others or none trained, took 0.035-0.057 here."""


def rehearse(job: Job, devices: Sequence[Device], controllers: Controllers) -> tuple[float, dict[str, bytes]]:
    """When measuring began (``time.monotonic()``), and by device what its peer would remember of the times of its
    blocks. Raises ``P2PTrainError``."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2ptrain-rehearsal-")))
        groups = stack.enter_context(device_groups(devices, controllers))
        workers: dict[str, subprocess.Popen[str]] = {}
        for device in devices:
            workers[device.name] = worker = subprocess.Popen(
                [sys.executable, "-m", "lab.rehearsal", str(folder / device.name)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment()
                | training_environment(round(device.memory_mb * 1e6) or None)
                | {"OMP_NUM_THREADS": str(device.num_threads(available_cores()))},
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            _tell(worker, job.to_json())
            _await(worker, device.name)
            node = subprocess.Popen([sys.executable, "-m", "lab.rehearsal"], env=environment())
            stack.callback(node.wait)
            stack.callback(node.kill)
            for process in (worker, node):
                groups[device.name].add(process.pid)
        began = time.monotonic()
        for worker in workers.values():
            _tell(worker, "measure")
        for name, worker in workers.items():
            _await(worker, name)
        return began, {name: (folder / name).read_bytes() for name in workers}


def _tell(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _await(worker: subprocess.Popen[str], device: str) -> None:
    """Its next line. Raises ``P2PTrainError`` where there is none."""
    assert worker.stdout is not None
    if not worker.stdout.readline():
        raise P2PTrainError(f"{device}: the process that measures its blocks ended; see above")


def stand_by() -> None:
    """Until it is killed, or its parent is."""
    parent = os.getppid()
    while os.getppid() == parent:
        began = time.thread_time()
        while time.thread_time() - began < STANDBY_TURN_S:
            pass
        time.sleep(STANDBY_TURN_S / STANDBY_SHARE)


def main(file: Path) -> None:
    import torch

    from p2ptrain.learning.blocks.chain import Chain
    from p2ptrain.learning.models import global_model
    from p2ptrain.learning.profiling.allocator import keep_for_training
    from p2ptrain.modes.jobs import job_from_json
    from p2ptrain.modes.pipeline import worker as pipeline
    from p2ptrain.modes.split import worker as split

    job = job_from_json(sys.stdin.readline(), "job")
    with torch.device("meta"):
        chain = Chain(global_model(job, allow_user_code=False), job.data.input_shape)
    print("ready", flush=True)
    sys.stdin.readline()
    keep_for_training()  # only now it is in its device, with that one's memory
    {"pipeline": pipeline, "split": split}[job.mode].profile_job(chain, job, "cpu", file)
    print("measured", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else stand_by()
