"""What ``job new`` and ``job check`` find out of a model: the same trial that a peer makes before its first plan.

Invariant: imports torch only when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from p2ptrain.learning.trial import Trial

MOST_TRIED = 64


def tried(job: Job, init: Path | None, data: str | None) -> Trial:
    """Build the job's model, fit the checkpoint, and make one step on some of the samples. Raises ``UserError``."""
    import numpy as np

    from p2ptrain.learning.data import load, open_source
    from p2ptrain.learning.snapshots import read_init
    from p2ptrain.learning.trial import Trial

    x = y = None
    if data:
        source = open_source(data).fitted(job.data)
        total = source.num_samples("train")
        some = np.unique(np.linspace(0, max(0, total - 1), min(total, MOST_TRIED, job.training.batch_size)).astype(int))
        x, y = load(source, job.data, "train", some).tensors(slice(None))
    tensors = read_init(init)[0] if init is not None else None
    return Trial(job, x, y, tensors)


def as_safetensors(init: Path, job_file: Path) -> Path:
    """The checkpoint itself, or, of what torch.save wrote, one beside the job file with its tensors."""
    if init.suffix == ".safetensors":
        return init
    from safetensors.torch import save_file

    from p2ptrain.learning.initial import read_weights

    made = job_file.with_name(f"{job_file.stem}-{init.stem}.safetensors")
    try:
        save_file(read_weights(init), made)
    except OSError as error:
        raise UserError(f"{made}: can't be written ({error.strerror or error}); name another place with -o") from None
    return made
