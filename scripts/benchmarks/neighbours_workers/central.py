"""The baseline: all samples in one plain torch process, as many passes."""

from __future__ import annotations

import workload


def main() -> None:
    training = workload.LocalTraining(workload.start())
    workload.wait_for_go()
    while training.round < training.setting.rounds:
        training.train_round()
        training.report_round(0)
    training.report_done()
    workload.stay()


if __name__ == "__main__":
    main()
