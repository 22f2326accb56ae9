"""A word on every key of a job file that needs one, for the file that ``job new`` writes."""

from __future__ import annotations

from p2ptrain.config import Job

COMMENTS = {
    "name": "for people only",
    "mode": "auto (the group takes tasks or replicas), tasks (a class sub-model each), replicas (all of it), pipeline, "
    "split",
    "seed": "initial weights, and how --shard cuts data",
    "model.name": "a built-in model, torchvision:NAME, timm:NAME, hf:CLASS, or package.module:function of your own",
    "model.freeze": "layers that are not trained: names, or names with wildcards",
    "model.config": "what a model of transformers is built from, as its config.json says",
    "model.width": "factor on all channel counts",
    "model.init": '.safetensors file to start from, relative to this file ("" = random)',
    "data.classes": "in the order of the model's outputs",
    "data.input_shape": "channels, height, width; for text 1, 1 and the bytes of a sample",
    "data.kind": "image, audio, text (its bytes, one after the other) or tokens (texts with a label each)",
    "data.vocabulary": "of tokens: every one is a number below this",
    "data.mean": "per channel, of pixels from 0 to 1 (log-mels for audio; not used for text)",
    "data.std": "likewise",
    "data.augment": "random crops and flips (images) or shifts (audio) while training",
    "data.light": "of augment: flips alone, without crops, and shifts alone, without masks; suits narrow models",
    "data.val": "share of the training samples held out for validation, unless the data have a val split; 0 = none",
    "data.white": "in pictures of more than 8 bits a channel, or of floats; 0 = 65535, all of 16 bits",
    "data.audio.sample_rate": "Hz; the audio table counts for audio only",
    "training.rounds": "after each round parameters travel",
    "training.epochs_per_round": "passes over the own samples a round",
    "training.optimizer": "sgd or adamw",
    "training.schedule": "of the learning rate: constant or cosine",
    "training.warmup": "share of all steps over which the learning rate rises from nearly zero",
    "training.clip": "longer gradients are scaled down to this norm; 0 = taken as they are",
    "training.precision": "fp32, or bf16: compute in bfloat16 on devices that have it (parameters stay float32)",
    "training.proximal": "FedProx' mu: how much steps are drawn back to the round's first parameters; 0 = not",
    "training.loss": "package.module:function of your own, as are the next two; nothing: cross-entropy",
    "training.patience": "all end after so many looks at the whole model without more right answers; 0 = never",
    "training.look_every": "rounds between two looks at the whole model; 0 = ten in all, for a twentieth of the time",
    "tasks.num_groups": "sub-models; 0 = one a peer, as many as are there at the first plan",
    "tasks.trunk": "this many first layers are shared by all sub-models",
    "tasks.targets": "what a sub-model learns: auto, all classes, its own and rest, or its own",
    "tasks.combine": "how sub-models make the global model: auto, own or sum",
    "tasks.own_fraction": "share of each batch from the own classes; 0 = as the data fall",
    "tasks.passes": "of a sub-model, for one of the whole model; at most as much work; 0 = as many as bring something",
    "tasks.head_fit_decay": "weight decay of that; 0.001 suits narrow models of few features",
    "tasks.budget": "of central training's work, what a device may spend in all, as 0.085; 0 = as much as that",
    "tasks.exchange_every": "rounds between two exchanges: more send less, and let copies drift further apart",
    "tasks.outer": "of replicas, how exchanges move the model: none, or nesterov (DiLoCo's outer momentum)",
    "tasks.outer_rate": "for nesterov only",
    "tasks.outer_momentum": "for nesterov only",
    "tasks.fit_head": "fit the last layer again at the end, together: auto, always or never",
    "pipeline.micro_batches": "a batch passes the pipeline in at most so many equal parts; the plan chooses how many",
    "pipeline.schedule": "sync: gradients as on one device; async: no flush, some gradients are a step late",
    "pipeline.strategy": "planned; equal (as many blocks each) and data-parallel are there to compare with",
    "pipeline.activations": "compression from stage to stage: none, fp16 or int8",
    "pipeline.gradients": "compression of what comes back: none, fp16 or int8",
    "pipeline.replan_gain": "change the running plan for one that promises this share more speed",
    "pipeline.snapshot_steps": "batches between snapshots; 0 = as few as cost little, a round at most",
    "pipeline.patience_s": "seconds that peers with newer blocks on disk are waited for",
    "pipeline.recovery": "light; heavy (all blocks through one peer) is there to compare with",
    "split.tails": "replica (copies, averaged after a round) or shared (one model, trained together step by step)",
    "split.labels": "send (to the helper, with the activations) or stay (the owner trains the last block and the loss)",
    "split.optimizer": "its state at a round's beginning: reset, or average",
    "split.micro_batches": "a batch is cut into at most so many equal parts; the plan chooses how many",
    "split.strategy": "planned; alone, mid-cut, common-cut, cuts-only, shares-only, alternating, unsplit to compare",
    "split.coding": "compression of activations and gradients: auto (where a link would be slow), none, fp16 or int8",
    "split.medium": "switched (a link for each device) or shared (one medium for all, as on one Wi-Fi)",
    "split.replan_gain": "change the plan, when a round begins, for one that promises this share more speed",
    "group.min_peers": "the first plan waits for so many peers",
    "group.settle_s": "and then so many seconds for more, half a second where all are ready and nobody new comes",
    "group.compression": "of what peers send: none, fp16, int8 or topk",
    "group.topk_fraction": "for topk only; copies of many devices come together from about 0.4 on",
    "group.robust": "of means of three and more: none, clip (what is far off counts less), trimmed-mean or median",
    "group.replicas": "so many peers keep a copy of each part; one in a group of three",
}


_CODE = ("transform", "loss", "own_schedule", "own_optimizer")
UNSAID = ('config = ""', "freeze = []", "vocabulary = 0", *(f'{key} = ""' for key in _CODE))


def commented(job: Job) -> str:
    """The job as TOML, with a word on every key that needs one."""
    table, lines = (
        "",
        ["# What a group trains. `p2ptrain job check` checks it; peers with equal job ids train together.", ""],
    )
    for line in job.to_toml().splitlines():
        if line.startswith("init_bytes") or line in UNSAID:
            continue  # read off the file that init names, or of other models and data
        if line.startswith("["):
            table = line.strip("[]") + "."
        comment = COMMENTS.get(table + line.partition(" = ")[0])
        if comment and len(line) + len(comment) > 110:
            lines.append(f"# {comment}")
        lines.append(f"{line}  # {comment}" if comment and len(line) + len(comment) <= 110 else line)
    return "\n".join(lines) + "\n"
