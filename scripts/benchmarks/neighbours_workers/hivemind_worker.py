"""One process of the workload with hivemind: local steps, then ``TrainingAverager`` over the parameters.

hivemind forks a process for its DHT and one for its averager, and starts ``p2pd``, a libp2p daemon in Go.
"""

from __future__ import annotations

import logging

import hivemind
import torch
import workload

PREFIX = "digits"


def main() -> None:
    setting = workload.start()
    options = setting.options
    training = workload.LocalTraining(setting, torch.contiguous_format)  # the averager can't take another
    dht = hivemind.DHT(
        initial_peers=options["initial_peers"],
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        start=True,
        use_relay=False,
        use_auto_relay=False,
    )
    averager = hivemind.TrainingAverager(
        training.optimizer,
        average_parameters=True,
        average_gradients=False,
        initialize_optimizer=False,  # it would take a step
        dht=dht,
        prefix=PREFIX,
        start=True,
        **options["averager"],
    )
    workload.report("address", addresses=[str(address) for address in dht.get_visible_maddrs()])
    workload.wait_for_go()
    while training.round < setting.rounds:
        training.train_round()
        training.report_round(average(averager, training.num_samples, options["timeout_s"]))
    training.report_done()
    workload.stay()


def average(averager: hivemind.TrainingAverager, weight: int, timeout_s: float) -> int:
    """How many models the average was made of; 0 = it failed, and the own model is as it was."""
    try:
        group = averager.step(weight=float(weight), timeout=timeout_s)
    except Exception as error:  # noqa: BLE001  what a failed round raises is not documented, and the next may work
        logging.warning("averaging failed: %r", error)
        return 0
    return len(group or ())


if __name__ == "__main__":
    main()
