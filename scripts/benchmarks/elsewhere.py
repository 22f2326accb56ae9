"""What the page of figures shows that ``scripts/bench.py`` does not measure: runs of ``p2ptrain demo``."""

from __future__ import annotations

from benchmarks.rows import Remark, Row, Section


def _demo(file: str, what: str, central: str = "{central_accuracy*100:.1f} %") -> Row:
    costs = ("{flops_share*100:.1f} %", "{bytes_sent*0.000001:.1f} MB")
    return Row(file, what, "{assembled_accuracy*100:.1f} %", central, costs)


FIGURES = Section(
    "What comes out",
    "A group beside central training",
    (
        _demo("demo-digits", "digits, 3 peers, a share of the samples each"),
        _demo("demo-digits-disjoint", "digits, 3 peers, **disjoint classes**, head re-fitted by the group"),
        _demo("demo-digits-disjoint-replicas", "the same split, whole model on every peer, averaged by gossip", ""),
        _demo("demo-spoken-digits", "spoken digits, {model:s}, 5 peers, {epochs:g} epochs"),
        _demo("demo-cifar10", "CIFAR-10, {model:s}, 5 peers, {epochs:g} epochs"),
    ),
    (
        Remark(
            "demo-digits",
            "The aim is to come within one point of central training with 11.8 times less work a sample. Digits are 0.6"
            " points short (disjoint classes: 1.1) with 8 to 11 times less.",
        ),
        Remark("demo-cifar10", "CIFAR-10 is two points short with 24 times less work."),
        Remark(
            "demo-spoken-digits",
            "Spoken digits are 2.3 points short with 10 times less. With a group for each of the five peers and 12"
            " epochs they were 11 short.",
        ),
        Remark(
            "demo-spoken-digits",
            "Fewer and wider groups (`--groups`) and longer training close the gap. How far has not been measured.",
        ),
        Remark(
            "demo-digits",
            "These are single runs with seed 0. FLOPs are a peer's training FLOPs a sample, forward and backward, of"
            " the full model's.",
        ),
    ),
    ("what", "assembled", "central, same epochs", "FLOPs per peer", "sent per peer", "command"),
    in_readme=(
        Row(
            "demo-digits-disjoint",
            "digits, three peers without a class in common: accuracy",
            "{assembled_accuracy*100:.1f} %, each at {flops_share*100:.0f} % of the work",
            "central training: {central_accuracy*100:.1f} %",
        ),
        Row(
            "demo-cifar10",
            "CIFAR-10, five peers: accuracy",
            "{assembled_accuracy*100:.1f} %, each at {flops_share*100:.0f} % of the work",
            "central training: {central_accuracy*100:.1f} %",
        ),
    ),
)
