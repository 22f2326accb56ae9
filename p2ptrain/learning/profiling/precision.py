"""In which numbers a device computes: float32, or bfloat16 where it has it and the job wants it.

Invariant: parameters, gradients and optimizers are float32 whatever the job says, so that devices with bfloat16 and
without train one model together; only what is computed in between is rounded.
"""

from __future__ import annotations

import contextlib

import torch

from p2ptrain.config import TrainingConfig

NO_BF16 = 'the job has training.precision = "bf16", which this device does not compute in: it trains in float32'


def bf16_supported(device: torch.device) -> bool:
    """Whether the device computes in bfloat16; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def is_mixed(config: TrainingConfig, device: torch.device) -> bool:
    """Whether this device trains in bfloat16."""
    return config.precision == "bf16" and bf16_supported(device)


def mixed(config: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within, forward passes compute as the job wants it and the device can."""
    if not is_mixed(config, device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
