"""What a trainer never loads: each of these takes tens of megabytes and a second of a fast core."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "networkx", "sklearn", "matplotlib", "zmq", "zeroconf")
TRAINS = """
import sys
import torch
from p2ptrain.config import TrainingConfig
from p2ptrain.learning.blocks.flops import training_flops
from p2ptrain.learning.models import build_model
from p2ptrain.learning.submodels.decoupling import Decoupling
from p2ptrain.learning.training import LocalTrainer
from p2ptrain.runtime.trainer.trainer import Trainer

torch.set_num_threads(1)
shape = (1, 8, 8)
whole = build_model("lenet", input_shape=shape, num_classes=4, seed=0)
part = Decoupling(whole, shape, [(0, 1), (2, 3)]).submodel(0, "all")
assert training_flops(whole, shape).total > training_flops(part, shape).total
for optimizer in ("sgd", "adamw"):
    trainer = LocalTrainer(part, TrainingConfig(optimizer=optimizer), num_classes=4, total_steps=2)
    trainer.step(torch.rand(4, *shape), torch.tensor([0, 1, 2, 3]))
    trainer.snapshot()
print(",".join(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_a_class_sub_model_trains_without_torchs_compiler() -> None:
    command = [sys.executable, "-c", TRAINS, *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
