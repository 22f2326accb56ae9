"""How much memory training a share of a built-in model takes, and so how large a share a peer can hold.

Invariant: a pure function of the job and the peer's memory, so every peer computes the same limit. The estimate is
linear in the share, which is on the safe side: weights fall with its square.
"""

from __future__ import annotations

from p2ptrain.config import Job

TRAINER_BASE_BYTES = 256 << 20
"""A trainer process with torch loaded and nothing else."""
PEER_BASE_BYTES = TRAINER_BASE_BYTES + (64 << 20)
"""What a peer of a pipeline takes without a model: its trainer, and its node with stage messages under way."""
SPARE_PART = 10
"""One part in so many of a device's memory stays free in pipelines' plans: what they estimate is from below, and
devices were seen to take up to an eighth more, for kernels' scratch space and gaps in the heap."""
BYTES_PER_WEIGHT = 16
"""float32: the weight, its gradient, its momentum, and one snapshot on its way to a replica holder."""
BYTES_PER_ACTIVATION = 8
"""float32: the value kept for the backward pass, and its gradient."""

SIZES: dict[str, tuple[int, int, int]] = {
    "lenet": (32_000, 361, 46),
    "alexnet": (3_340_000, 1024, 98),
    "vgg11": (9_226_000, 0, 328),
    "vgg11_bn": (9_229_000, 0, 476),
    "vgg13": (9_411_000, 0, 520),
    "vgg13_bn": (9_414_000, 0, 764),
    "vgg16": (14_720_000, 0, 572),
    "vgg16_bn": (14_725_000, 0, 842),
    "resnet18": (11_174_000, 0, 1476),
    "resnet20": (273_000, 0, 481),
    "mobilenetv2": (2_237_000, 0, 4789),
    "dscnn": (29_000, 0, 497),
    "bert_small": (13_137_000, 512, 33_610),
    "gpt_mini": (2_768_000, 192, 19_136),
}
"""Of each built-in model at width 1: weights, weights per input pixel, activation elements per input pixel.

A pixel of text is a byte.
"""


def pipeline_bytes(memory_bytes: float) -> float:
    """What a stage of a pipeline may take of a device's memory, beside what its processes take."""
    return max(0.0, memory_bytes - memory_bytes // SPARE_PART - PEER_BASE_BYTES)


def training_bytes(job: Job) -> int:
    """Memory of training the full model of ``job``, beside the process itself; 0 where it is not known."""
    if job.model.name not in SIZES:
        return 0
    weights, weights_per_pixel, activations_per_pixel = SIZES[job.model.name]
    _, height, side = job.data.input_shape
    pixels, width = height * side, job.model.width
    num_weights = (weights + weights_per_pixel * pixels) * width * width
    num_activations = activations_per_pixel * pixels * width * job.training.batch_size
    return int(BYTES_PER_WEIGHT * num_weights + BYTES_PER_ACTIVATION * num_activations)


def largest_share(job: Job, memory_bytes: int) -> float:
    """The largest share that fits into ``memory_bytes``, in whole millionths; 1 where model or memory is not known."""
    full = training_bytes(job)
    if full == 0 or memory_bytes <= 0:
        return 1.0
    return max(0, min(10**6, (memory_bytes - TRAINER_BASE_BYTES) * 10**6 // full)) / 10**6
