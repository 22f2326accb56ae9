"""torchft's server, which says who is in each round: one process beside the three."""

from __future__ import annotations

import workload
from torchft.coordination import LighthouseServer


def main() -> None:
    setting = workload.start()
    server = LighthouseServer(bind="127.0.0.1:0", **setting.options)
    workload.report("address", addresses=[server.address()])
    workload.stay()


if __name__ == "__main__":
    main()
