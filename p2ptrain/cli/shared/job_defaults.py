"""How large the steps of a new job are, where its author leaves that open.

Invariant: batch sizes are chosen by validation samples of the sets at hand, never by test samples. In ten rounds at the
learning rate 0.05 spoken digits (DS-CNN, 1,223 samples to train on) get 48 % of those right in batches of 64, 78 % of
32 and 95 % of 16; pictures of CIFAR-10 (LeNet) 45, 44 and 37 % with 1,802 to train on, and 29, - and 28 % with 181.
"""

from __future__ import annotations

from p2ptrain.config import TrainingConfig

BATCH_SIZES = (64, 32, 16)
FOR_TEXT = {"training.optimizer": "adamw", "training.learning_rate": 0.001}
"""Where the data are text."""
ENOUGH_STEPS = {"audio": 1500}
"""That all rounds together should have, on a device that has all samples."""


def batch_size_for(kind: str, num_samples: int, training: TrainingConfig) -> int:
    """The largest with which there are steps enough; ``num_samples`` to train on."""
    num_passes = training.rounds * training.epochs_per_round
    enough = ENOUGH_STEPS.get(kind, 0)
    return next((size for size in BATCH_SIZES if num_samples * num_passes / size >= enough), BATCH_SIZES[-1])
