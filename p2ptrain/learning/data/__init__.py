"""A peer's own samples: open a data set, cut a share of it, and load it in the shape that the job agreed on.

Invariant: a sample's label is always an index into the job's class names, never into the order of someone's folders.

    source = open_source("images:photos.zip")            # names and counts, nothing decoded
    contract = propose_contract(source)                  # what goes into a job file
    mine = select(source, contract, "train", shard="2/5")
    data = load(source, contract, "train", mine)         # without what the contract holds out: that is "val"
    for x, y in data.batches(np.random.default_rng(0), batch_size=64): ...

Only ``Dataset.tensors`` and ``Dataset.batches`` import torch.
"""

from p2ptrain.learning.data.audio import feature_shape, log_mel, num_frames, read_wav
from p2ptrain.learning.data.contract import check_learnable, class_map, load, propose_contract
from p2ptrain.learning.data.dataset import Dataset
from p2ptrain.learning.data.opening import SCHEMES, open_source
from p2ptrain.learning.data.source import Kind, Source, Split
from p2ptrain.learning.data.split import holdout, select

__all__ = [
    "SCHEMES",
    "Dataset",
    "Kind",
    "Source",
    "Split",
    "check_learnable",
    "class_map",
    "feature_shape",
    "holdout",
    "load",
    "log_mel",
    "num_frames",
    "open_source",
    "propose_contract",
    "read_wav",
    "select",
]
