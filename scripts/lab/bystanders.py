"""Devices that train for themselves while another one is measured.

The devices of a lab share a machine's caches and memory, as real ones don't: with all of them at work each was up to a
quarter slower than one alone on the machine. So what one device does alone is measured with the others at work, too.

    python -m lab.bystanders < JOB.json      (started by ``bystanders``; trains until it is killed)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from lab.calibration import made_up_batch
from lab.host import environment
from lab.placement import placed
from lab.quota import Controllers, DeviceGroup
from lab.spec import Device
from p2ptrain.config import Job
from p2ptrain.errors import P2PTrainError
from p2ptrain.learning.profiling.allocator import training_environment
from p2ptrain.learning.profiling.device import available_cores
from p2ptrain.runtime.parent import own_child


@contextmanager
def bystanders(job: Job, devices: Sequence[Device], measured: str, controllers: Controllers) -> Iterator[None]:
    """All ``devices`` but the one named ``measured`` train the job's model on made-up samples meanwhile.

    Raises ``P2PTrainError`` where one can't.
    """
    places = placed(devices, sorted(os.sched_getaffinity(0)), available_cores())
    with contextlib.ExitStack() as stack:
        for device in devices:
            if device.name != measured:
                _train(stack, job, device, places, controllers)
        yield


def _train(
    stack: contextlib.ExitStack,
    job: Job,
    device: Device,
    places: Mapping[str, tuple[int, ...]],
    controllers: Controllers,
) -> None:
    group = DeviceGroup(controllers, device.name, device.share, device.memory_mb, places[device.name])
    stack.callback(group.remove)
    worker = subprocess.Popen(
        [sys.executable, "-m", "lab.bystanders"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment()
        | training_environment(round(device.memory_mb * 1e6) or None)
        | {**own_child(), "OMP_NUM_THREADS": str(device.num_threads(available_cores()))},
    )
    stack.callback(worker.wait)
    stack.callback(worker.kill)
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(job.to_json() + "\n")
    worker.stdin.flush()
    if not worker.stdout.readline():
        raise P2PTrainError(f"{device.name}: the process that trains beside ended; see above")
    group.add(worker.pid)


def main() -> None:
    from p2ptrain.learning.models import global_model
    from p2ptrain.learning.profiling.allocator import keep_for_training
    from p2ptrain.learning.training import LocalTrainer
    from p2ptrain.modes.jobs import job_from_json
    from p2ptrain.runtime.trainer.process import die_with_node

    die_with_node()
    keep_for_training()
    job = job_from_json(sys.stdin.readline(), "job")
    model = global_model(job, allow_user_code=False)
    trainer = LocalTrainer(model, job.training, num_classes=len(job.data.classes), total_steps=10**6, seed=0)
    x, y = made_up_batch(job, job.training.batch_size)
    trainer.step(x, y)
    print("ready", flush=True)
    while True:
        trainer.step(x, y)


if __name__ == "__main__":
    main()
