"""The words of the README's rows on depth slices: file, what, measured, baseline, as ``BenchRow`` takes them."""

from __future__ import annotations

PLANNED_MODELS = {"vgg11": "VGG-11", "mobilenetv2": "MobileNetV2", "bert_small": "BERT-small-like, 128 bytes"}
PIPELINES = {"pipeline": "VGG-11", "pipeline-mobilenet": "MobileNetV2"}
NO_FLUSH = ", no flush between batches (`async`)"

ROWS: tuple[tuple[str, str, str, str], ...] = (
    *(
        (
            "planner",
            f"planning {words} in depth slices for speeds 1 : 0.1 : 1, five and eight boards: seconds a batch as the"
            " cost model predicts; CPU ms of planning",
            "; ".join(
                f"{{{model}, {room}/batch_s:.2f}} s, {{{model}, {room}/planning_ms:.0f}} ms"
                for room in ("1 : 0.1 : 1", "5 boards", "8 boards")
            ),
            "times as long, best single peer / equal split / data parallel: "
            + "; ".join(
                " / ".join(
                    f"{{{model}, {room}: {case}/times_as_long:.1f}}"
                    for case in ("best single peer", "equal split", "data parallel")
                )
                for room in ("1 : 0.1 : 1", "5 boards", "8 boards")
            ),
        )
        for model, words in PLANNED_MODELS.items()
    ),
    (
        "planner",
        "planning 60 made-up blocks on 16 peers of whom no two are alike, three such rooms: CPU ms; times as long as"
        " the plan, best single peer / equal split / data parallel, all as the cost model predicts",
        "; ".join(f"{{60 blocks, 16 unlike peers, {seed}/planning_ms:.0f}} ms" for seed in (1, 2, 3)),
        "; ".join(
            " / ".join(
                f"{{60 blocks, 16 unlike peers, {seed}: {case}/times_as_long:.1f}}"
                for case in ("best single peer", "equal split", "data parallel")
            )
            for seed in (1, 2, 3)
        ),
    ),
    *(
        (
            file,
            f"{words} in depth slices, speeds 1 : 0.1 : 1{flush}: samples/s; times one fast device alone; times an"
            " equal split; measured/predicted; and with int8 between the stages",
            "; ".join(
                f"{words_of_case}{{{case}/samples_per_s:.0f}}; {{{case}/times_single:.2f}}; {{{case}/times_equal:.1f}};"
                f" {{{case}/measured_of_predicted:.2f}}"
                for words_of_case, case in (("", planned), ("int8: ", f"{planned}, int8"))
            ),
            f"equal split: {{{equal}/samples_per_s:.0f}}, {{{equal}/measured_of_predicted:.2f}} of predicted" + others,
        )
        for file, words in PIPELINES.items()
        for flush, planned, equal, others in (
            (
                "",
                "planned",
                "equal split",
                "; one fast device alone, the others busy: {one fast device alone/samples_per_s:.0f}; data parallel:"
                " {data parallel/samples_per_s:.0f}, {data parallel/measured_of_predicted:.2f} of predicted",
            ),
            (NO_FLUSH, "planned, async", "equal split, async", ""),
        )
    ),
    (
        "pipeline-wired",
        "VGG-11 in depth slices, speeds 1 : 0.1 : 1, links of 1 Gbit/s: samples/s; times one fast device alone; times"
        " an equal split; measured/predicted; and with no flush between batches (`async`)",
        "; ".join(
            f"{words}{{{case}/samples_per_s:.0f}}; {{{case}/times_single:.2f}}; {{{case}/times_equal:.1f}};"
            f" {{{case}/measured_of_predicted:.2f}}"
            for words, case in (("", "planned"), ("async: ", "planned, async"))
        ),
        "equal split: {equal split/samples_per_s:.0f}, {equal split/measured_of_predicted:.2f} of predicted; async:"
        " {equal split, async/samples_per_s:.0f}, {equal split, async/measured_of_predicted:.2f} of predicted; one fast"
        " device alone, the others busy: {one fast device alone/samples_per_s:.0f}",
    ),
    (
        "pipeline_text",
        "the encoder after BERT-small on text, four unlike devices at 50 and 100 Mbit/s: seconds a batch of 32;"
        " times data parallel, times the fastest device alone; measured/predicted; MB sent a batch",
        "{planned/batch_s:.2f} s; {planned/times_data_parallel:.1f}, {planned/times_single:.2f};"
        " {planned/measured_of_predicted:.2f}; {planned/sent_mb:.1f} MB",
        "data parallel: {data parallel alone/batch_s:.2f} s, {data parallel alone/measured_of_predicted:.2f} of"
        " predicted, {data parallel alone/sent_mb:.0f} MB; equal split: {equal split/batch_s:.2f} s,"
        " {equal split/measured_of_predicted:.2f} of predicted; fastest device alone:"
        " {fastest device alone/batch_s:.2f} s",
    ),
    (
        "pipeline_memory",
        "a model that needs {alone/estimated_mb:.0f} MB, on three devices of {three together/limit_mb:.0f} MB each:"
        " peak that no file gives back, of the device that needs most (the planner's estimate); batches/s; loss at"
        " first and at last",
        "{three together/kept_mb:.0f} MB ({three together/estimated_mb:.0f} MB); {three together/batches_per_s:.2f};"
        " {three together/loss_first:.2f}, {three together/loss_last:.2f}",
        "one device alone says {alone/refused_s:.0f} s after its start that it can't; made to try, it is ended by its"
        " limit after {alone, made to try/killed_s:.0f} s",
    ),
    *(
        (
            "replan",
            f"VGG-11 in depth slices{flush}, the fastest of three devices slowed to a quarter while it trains: batches"
            " until the new plan; batches lost or done twice; samples/s before, by the old plan, by the new one",
            f"{{{slowed}/batches_until:.0f}}; {{{slowed}/batches_wrong:.0f}}; {{{slowed}/before_per_s:.0f}},"
            f" {{{slowed}/meanwhile_per_s:.0f}}, {{{slowed}/samples_per_s:.0f}}",
            f"fresh groups with the slowed device, before and after: {{{fresh}/samples_per_s:.0f}} samples/s; of that"
            f" the replanned one has {{{slowed}/ratio:.2f}}",
        )
        for flush, slowed, fresh in (
            ("", "slowed while training", "fresh group"),
            (NO_FLUSH, "slowed while training, async", "fresh group, async"),
        )
    ),
    (
        "slices_accuracy",
        "a quarter of CIFAR-10 at 16 x 16, a small VGG-11 in three stages: accuracy, and its difference to the single"
        " device with the same seed",
        "; ".join(
            f"{case}: {{{case}/accuracy:.1f}} %, {{{case}/difference:+.1f}}"
            for case in ("sync", "async", "async, whole batches", "sync, fp16", "sync, int8", "async, int8")
        ),
        "single device: {single/accuracy:.1f} %",
    ),
)
