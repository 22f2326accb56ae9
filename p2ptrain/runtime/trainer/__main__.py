"""The trainer process.

python -m p2ptrain.runtime.trainer FD        (started by the node, never by hand)
"""

from __future__ import annotations

import os
import sys

from p2ptrain.imports import uncollected

if __name__ == "__main__":
    with uncollected():
        from p2ptrain.runtime.trainer.trainer import main
    main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to save, and torch takes seconds to take itself apart on a busy device
