"""Whether a job makes sense: what the types of its values alone don't say.

Invariant: a job that came from the network passes the same checks as one from a file.
"""

from __future__ import annotations

from p2ptrain.config import MAX_CLASSES, Job, check_limits
from p2ptrain.errors import JobError
from p2ptrain.ids import is_sha256
from p2ptrain.model_config import MAX_PATTERN, MAX_PATTERNS, is_own_code
from p2ptrain.modes.registry import MODES


def check_job(job: Job, where: str = "job") -> None:
    """Check what types alone don't say. Raises ``JobError`` naming the key."""
    t, g, d = job.training, job.group, job.data
    limits = (
        ("seed", job.seed, 0, 2**63 - 1),
        ("model.width", job.model.width, 0.01, 16),
        ("model.init_bytes", job.model.init_bytes, 0, 2**34),
        ("data.val", d.val, 0, 0.5),
        ("data.white", d.white, 0, 2**32),
        ("data.vocabulary", d.vocabulary, 1 if d.kind == "tokens" else 0, 2**20 if d.kind == "tokens" else 0),
        ("training.rounds", t.rounds, 1, 1_000_000),
        ("training.epochs_per_round", t.epochs_per_round, 0.001, 10_000),
        ("training.batch_size", t.batch_size, 1, 65_536),
        ("training.learning_rate", t.learning_rate, 1e-9, 100),
        ("training.momentum", t.momentum, 0, 0.9999),
        ("training.weight_decay", t.weight_decay, 0, 1),
        ("training.label_smoothing", t.label_smoothing, 0, 0.9),
        ("training.warmup", t.warmup, 0, 0.9),
        ("training.clip", t.clip, 0, 1e6),
        ("training.proximal", t.proximal, 0, 1e3),
        ("training.patience", t.patience, 0, 1_000_000),
        ("training.look_every", t.look_every, 0, 1_000_000),
        ("group.min_peers", g.min_peers, 1, 1000),
        ("group.settle_s", g.settle_s, 0, 3600),
        ("group.topk_fraction", g.topk_fraction, 0.0001, 1),
        ("group.replicas", g.replicas, 0, 16),
    )
    check_limits(limits, where)
    for key, name in (
        *(("training.loss", t.loss), ("training.own_schedule", t.own_schedule)),
        *(("training.own_optimizer", t.own_optimizer), ("data.transform", d.transform)),
    ):
        if name and not is_own_code(name):
            raise JobError(
                f"{where}: {key}: {name[:80]!r}: expected a function of your own, as package.module:function"
            )
    if len(job.model.freeze) > MAX_PATTERNS or not all(0 < len(each) <= MAX_PATTERN for each in job.model.freeze):
        raise JobError(f"{where}: model.freeze: expected at most {MAX_PATTERNS} names of layers")
    if t.loss and t.label_smoothing:
        raise JobError(f"{where}: training.label_smoothing: is of cross-entropy, and training.loss is another; set 0")
    if d.transform and d.reads_tokens:
        raise JobError(f"{where}: data.transform: changes pictures and recordings, and the data are {d.kind}")
    if t.patience and not d.val:
        raise JobError(f"{where}: training.patience: needs validation samples, and data.val = 0 holds out none")
    if g.robust in ("trimmed-mean", "median") and g.compression == "topk":
        raise JobError(
            f'{where}: group.robust: "{g.robust}" needs whole copies, and group.compression = "topk" sends a part of '
            'each; use "clip", or another compression'
        )
    if not 2 <= len(d.classes) <= MAX_CLASSES:
        others = "; if other devices have more, name all with --classes cat,dog" if len(d.classes) == 1 else ""
        raise JobError(f"{where}: data.classes: expected 2 to {MAX_CLASSES} class names, got {len(d.classes)}{others}")
    if len(set(d.classes)) != len(d.classes):
        raise JobError(f"{where}: data.classes: a class is named twice")
    if len(d.input_shape) != 3 or not all(1 <= n <= 4096 for n in d.input_shape):
        what = f"[1, 1, {d.kind} in a sample]" if d.reads_tokens else "[channels, height, width]"
        raise JobError(f"{where}: data.input_shape: expected {what}, each from 1 to 4096, got {list(d.input_shape)}")
    for key, values in (("mean", d.mean), ("std", d.std)):
        if len(values) != d.input_shape[0]:
            raise JobError(f"{where}: data.{key}: expected {d.input_shape[0]} numbers, one a channel")
    if any(s <= 0 for s in d.std):
        raise JobError(f"{where}: data.std: must be above zero")
    if job.mode not in MODES:
        raise JobError(f"{where}: mode: {job.mode!r} is not one of {', '.join(MODES)}")
    if len({table.TABLE for table in job.tables}) != len(job.tables):
        raise JobError(f"{where}: tables: two of the same mode")
    own = job.table(MODES[job.mode].config)
    for table in (own, *(each for each in job.tables if each is not own)):
        table.check(job, where)
    if job.model.init and where == "job from the group" and not is_sha256(job.model.init):
        raise JobError(f"{where}: model.init: not a sha256")
