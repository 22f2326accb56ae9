"""One process of the workload with torchft: its ``LocalSGD`` over gloo, which averages after each round's last step."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

if sys.platform == "linux":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import workload
from torch.distributed import TCPStore
from torchft.local_sgd import LocalSGD
from torchft.manager import Manager
from torchft.process_group import ProcessGroupGloo

LOOPBACK = "127.0.0.1"


def main() -> None:
    setting = workload.start()
    options = setting.options
    training = workload.LocalTraining(setting)
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    timeout = timedelta(seconds=options["timeout_s"])
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=options["gloo_timeout_s"])),
        load_state_dict=training.model.load_state_dict,
        state_dict=training.model.state_dict,
        min_replica_size=1,
        use_async_quorum=False,
        timeout=timeout,
        quorum_timeout=timeout,
        connect_timeout=timeout,
        rank=0,
        world_size=1,
        store_addr=LOOPBACK,
        store_port=store.port,
        lighthouse_addr=options["lighthouse"],
        replica_id=setting.name,
        hostname=LOOPBACK,
        init_sync=False,  # all start from the same weights
    )
    workload.wait_for_go()
    with LocalSGD(manager, training.model, training.optimizer, sync_every=training.steps_per_round):
        while training.round < setting.rounds:
            before = manager.current_step()
            training.train_round()
            training.report_round(manager.num_participants() if manager.current_step() > before else 0)
    training.report_done()
    workload.stay()


if __name__ == "__main__":
    main()
