"""Job files: what is read is what was written, what is wrong is named, and the id follows from the content alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.config import (
    MAX_CLASSES,
    MAX_JOB_BYTES,
    AudioConfig,
    DataConfig,
    GroupConfig,
    Job,
    ModelConfig,
    TrainingConfig,
)
from p2ptrain.errors import JobError
from p2ptrain.model_config import flags_to_allow
from p2ptrain.modes.jobs import check_job, job_from_json, job_from_mapping, job_from_text, load_job
from p2ptrain.modes.pipeline.config import PipelineConfig, pipeline_of
from p2ptrain.modes.tasks.config import TasksConfig

SHA = hashlib.sha256(b"a checkpoint").hexdigest()
DIGITS = Job(
    name="digits",
    data=DataConfig(classes=tuple("0123456789"), input_shape=(1, 8, 8), mean=(0.3,), std=(0.25,)),
    training=TrainingConfig(rounds=5),
)
GOLDEN_ID = "b73c21b4476372a5"
"""Of ``DIGITS``. A job's id is on every peer's disk and in every record: it only changes with the wire version."""
many = settings(max_examples=150, deadline=None)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
models = st.builds(
    ModelConfig,
    name=st.sampled_from(["lenet", "my.module:make"]) | texts,
    width=floats(0.01, 16),
    init=st.sampled_from(["", SHA]),
    init_bytes=st.integers(0, 2**34),
)
trainings = st.builds(
    TrainingConfig,
    rounds=st.integers(1, 1_000_000),
    epochs_per_round=floats(0.001, 10_000),
    batch_size=st.integers(1, 65_536),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    learning_rate=floats(1e-9, 100),
    momentum=floats(0, 0.9999),
    weight_decay=floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine"]),
    label_smoothing=floats(0, 0.9),
)
tasks = st.builds(
    TasksConfig,
    num_groups=st.integers(0, 2),
    trunk=st.integers(0, 1000),
    targets=st.sampled_from(["auto", "all"]),
    combine=st.sampled_from(["auto", "own", "sum"]),
    own_fraction=floats(0, 1),
    fit_head=st.sampled_from(["auto", "always", "never"]),
    head_fit_steps=st.integers(1, 100_000),
)
pipelines = st.builds(
    PipelineConfig,
    micro_batches=st.integers(1, 4096),
    schedule=st.sampled_from(["sync", "async"]),
    strategy=st.sampled_from(["planned", "equal", "data-parallel"]),
    activations=st.sampled_from(["none", "fp16", "int8"]),
    gradients=st.sampled_from(["none", "fp16", "int8"]),
    replan_gain=floats(0.01, 10),
    snapshot_steps=st.integers(0, 1_000_000),
)
groups = st.builds(
    GroupConfig,
    min_peers=st.integers(1, 1000),
    settle_s=floats(0, 3600),
    compression=st.sampled_from(["none", "fp16", "int8", "topk"]),
    topk_fraction=floats(0.0001, 1),
    replicas=st.integers(0, 16),
)
audios = st.builds(AudioConfig, st.integers(1, 10**6), floats(0, 60), floats(0, 1), floats(0, 1), st.integers(1, 256))


@st.composite
def datas(draw: st.DrawFn) -> DataConfig:
    channels = draw(st.integers(1, 4))
    return DataConfig(
        classes=tuple(draw(st.lists(texts, min_size=2, max_size=6, unique=True))),
        input_shape=(channels, draw(st.integers(1, 4096)), draw(st.integers(1, 4096))),
        kind=draw(st.sampled_from(["image", "audio"])),
        mean=tuple(draw(st.lists(floats(-1e6, 1e6), min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(floats(1e-6, 1e6), min_size=channels, max_size=channels))),
        augment=draw(st.booleans()),
        light=draw(st.booleans()),
        audio=draw(audios),
        val=draw(floats(0, 0.5)),
    )


def whole(job: Job) -> Job:
    """Of a pipeline: a batch of whole micro-batches, and nothing held out."""
    num = pipeline_of(job).micro_batches
    training = dataclasses.replace(job.training, batch_size=max(job.training.batch_size // num * num, num))
    data = dataclasses.replace(job.data, val=0.0)
    return dataclasses.replace(job, training=training, data=data) if job.mode == "pipeline" else job


jobs = st.builds(
    Job,
    name=texts,
    mode=st.sampled_from(["auto", "tasks", "replicas", "pipeline"]),
    seed=st.integers(0, 2**53),
    model=models,
    data=datas(),
    training=trainings,
    tables=st.just(()) | st.tuples(tasks) | st.tuples(pipelines) | st.tuples(pipelines, tasks),
    group=groups,
).map(whole)


def plain(job: Job = DIGITS) -> dict[str, Any]:
    return dict(json.loads(job.to_json()))


def changed(key: str, value: object) -> dict[str, Any]:
    """``DIGITS`` as tables with another value at ``table.key``."""
    tables = {"tasks": {}, "pipeline": {}, **plain()}
    table = tables
    *path, last = key.split(".")
    for name in path:
        table = table[name]
    table[last] = value
    return tables


# --- round trips ----------------------------------------------------------------------------------------------------


@many
@given(jobs)
def test_json_brings_back_an_equal_job(job: Job) -> None:
    again = job_from_json(job.to_json())
    assert again == job
    assert again.to_json() == job.to_json()
    assert again.id == job.id


@many
@given(jobs)
def test_toml_brings_back_an_equal_job(job: Job) -> None:
    again = job_from_mapping(tomllib.loads(job.to_toml()), "job.toml")
    assert again == job
    assert again.id == job.id


@settings(max_examples=30, deadline=None)
@given(job=jobs)
def test_a_job_file_brings_back_an_equal_job(tmp_path_factory: pytest.TempPathFactory, job: Job) -> None:
    path = tmp_path_factory.getbasetemp() / "job.toml"
    path.write_text(job.to_toml(), encoding="utf-8", newline="")
    assert load_job(path) == job


def test_a_delete_character_survives_toml() -> None:
    """TOML wants it escaped, and JSON does not."""
    job = dataclasses.replace(DIGITS, name="\x7f")
    assert job_from_mapping(tomllib.loads(job.to_toml()), "job.toml") == job


def test_what_is_left_out_has_its_default() -> None:
    small = {"data": {"classes": ["a", "b"], "input_shape": [1, 4, 4], "mean": [0], "std": [1]}}
    job = job_from_mapping(small, "job.toml")
    assert job == Job(data=DataConfig(classes=("a", "b"), input_shape=(1, 4, 4), mean=(0.0,), std=(1.0,)))


def test_a_job_file_as_other_editors_save_it_loads(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xef\xbb\xbf" + DIGITS.to_toml().replace("\n", "\r\n").encode())
    assert load_job(path) == DIGITS


def test_a_job_file_of_before_there_was_validation_loads(tmp_path: Path) -> None:
    text = "".join(line for line in DIGITS.to_toml().splitlines(True) if not line.startswith("val = "))
    (tmp_path / "job.toml").write_text(text)
    assert "val" not in tomllib.loads(text)["data"]
    assert load_job(tmp_path / "job.toml") == DIGITS and DIGITS.data.val == 0.1


# --- the id ---------------------------------------------------------------------------------------------------------


def test_the_id_of_a_job_stays_what_it_is() -> None:
    assert DIGITS.id == GOLDEN_ID


@pytest.mark.parametrize("number", [1, 1.0])
def test_whole_numbers_and_floats_name_the_same_job(number: float) -> None:
    assert job_from_mapping(changed("training.learning_rate", number), "job").id == (
        dataclasses.replace(DIGITS, training=dataclasses.replace(DIGITS.training, learning_rate=1.0)).id
    )


def others(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    assert isinstance(value, tuple)
    return (*value, 7)


def variants(config: Any) -> list[Any]:
    """With another value of each field, those of nested tables too."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = variants(value) if dataclasses.is_dataclass(value) else [others(value)]
        found += [dataclasses.replace(config, **{field.name: each}) for each in inner if field.name != "tables"]
    return found


TABLES = [*variants(TasksConfig()), *variants(PipelineConfig())]
"""Each a mode's table with another value of one key."""


def test_the_id_covers_every_field() -> None:
    """Any field with another value gives another id, those of nested tables too."""
    ids = {variant.id for variant in variants(DIGITS)}
    assert DIGITS.id not in ids
    assert len(ids) == len(variants(DIGITS)) > 25


def test_the_id_covers_what_a_mode_says() -> None:
    ids = {DIGITS.with_table(table).id for table in TABLES}
    assert len(ids - {DIGITS.id}) == len(TABLES) > 14


def test_what_a_mode_says_by_default_is_not_said() -> None:
    """So a job made without a table is the one that is read back, and a mode's new key leaves old ids alone."""
    said = DIGITS.with_table(TasksConfig()).with_table(PipelineConfig())
    assert said.id == GOLDEN_ID and said == DIGITS and hash(said) == hash(DIGITS)
    assert not {"tasks", "pipeline"} & plain(said).keys()
    some = said.with_table(TasksConfig(trunk=2))
    assert plain(some)["tasks"] == {"trunk": 2} and some != DIGITS
    assert job_from_json(some.to_json()).table(TasksConfig) == TasksConfig(trunk=2)


def test_a_file_says_all_of_the_tables_that_the_job_holds() -> None:
    tables = tomllib.loads(DIGITS.with_table(PipelineConfig(micro_batches=4)).to_toml())
    assert tables["pipeline"] == dataclasses.asdict(PipelineConfig(micro_batches=4)) and "tasks" not in tables


def test_a_job_has_one_table_of_a_kind() -> None:
    job = DIGITS.with_table(TasksConfig(trunk=1)).with_table(PipelineConfig()).with_table(TasksConfig(trunk=2))
    assert job.tables == (PipelineConfig(), TasksConfig(trunk=2))
    assert job.table(TasksConfig).trunk == 2 and DIGITS.table(TasksConfig) == TasksConfig()
    with pytest.raises(JobError, match="job: tables: two of the same mode"):
        check_job(dataclasses.replace(DIGITS, tables=(TasksConfig(), TasksConfig(trunk=1))))


def test_a_mode_that_is_not_known() -> None:
    with pytest.raises(JobError, match="job: mode: 'swarm' is not one of auto, tasks, replicas, pipeline"):
        check_job(dataclasses.replace(DIGITS, mode="swarm"))


def test_the_order_of_keys_does_not_matter() -> None:
    tables = {name: plain()[name] for name in reversed(plain())}
    assert job_from_mapping(tables, "job").id == DIGITS.id


# --- what is wrong is named -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("colour", "red", "job.toml: colour: unknown key; known here: data, group"),
        ("training.epochs", 3, "training.epochs: unknown key; known here: batch_size"),
        ("data.audio.rate", 1, "data.audio.rate: unknown key"),
        ("name", 7, "name: expected str, got 7"),
        ("seed", "1", "seed: expected int, got '1'"),
        ("seed", True, "seed: expected int, got True"),
        ("seed", 1.5, "seed: expected int, got 1.5"),
        ("data.augment", 1, "data.augment: expected bool, got 1"),
        ("data", [], "data: expected a table"),
        ("data.classes", "ab", "data.classes: expected a list"),
        ("data.classes", ["a", 1], r"data.classes\[1\]: expected str"),
        ("data.mean", [None], r"data.mean\[0\]: expected float"),
        ("training.learning_rate", float("nan"), "training.learning_rate: nan is not a finite number"),
        ("training.learning_rate", float("inf"), "training.learning_rate: inf is not a finite number"),
        ("mode", "swarm", "mode: 'swarm' is not one of auto, tasks, replicas, pipeline"),
        ("mode", ["tasks"], "mode: .* is not one of auto, tasks, replicas, pipeline"),
        ("training.optimizer", "lion", "training.optimizer: 'lion' is not one of sgd, adamw"),
        ("name", "x" * 4097, "name: longer than 4096 characters"),
        ("data.classes", ["a"], "data.classes: expected 2 to 4096 class names, got 1"),
        ("data.classes", ["a", "b", "a"], "data.classes: a class is named twice"),
        ("data.classes", [str(i) for i in range(MAX_CLASSES + 1)], "got 4097"),
        ("data.input_shape", [8, 8], "data.input_shape: expected"),
        ("data.input_shape", [1, 0, 8], "data.input_shape: expected"),
        ("data.mean", [0.1, 0.2], "data.mean: expected 1 numbers, one a channel"),
        ("data.std", [0.0], "data.std: must be above zero"),
        ("tasks.num_groups", 11, "tasks.num_groups: 11 groups for 10 classes"),
        ("data.kind", "text", 'mode: "tasks" divides .* the data are text; use "replicas" or "pipeline"'),
        ("pipeline.strategy", "greedy", "pipeline.strategy: 'greedy' is not one of planned, equal, data-parallel"),
        ("pipeline.gradients", "topk", "pipeline.gradients: 'topk' is not one of none, fp16, int8"),
        ("tasks", {"passes": 0.5}, "tasks.passes: 0.5 is less than one pass"),
        ("tasks", {"combine": "sum", "targets": "own"}, 'tasks.combine: "sum" needs tasks.targets = "all"'),
    ],
)
def test_the_error_names_the_key(key: str, value: object, says: str) -> None:
    with pytest.raises(JobError, match=says) as caught:
        job_from_mapping(changed(key, value), "job.toml")
    assert str(caught.value).startswith("job.toml: ")


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("model.width", 0.01, 16),
        ("data.val", 0, 0.5),
        ("training.rounds", 1, 1_000_000),
        ("training.epochs_per_round", 0.001, 10_000),
        ("training.batch_size", 1, 65_536),
        ("training.learning_rate", 1e-9, 100),
        ("training.momentum", 0, 0.9999),
        ("training.weight_decay", 0, 1),
        ("training.label_smoothing", 0, 0.9),
        ("tasks.trunk", 0, 1000),
        ("tasks.own_fraction", 0, 1),
        ("tasks.head_fit_steps", 1, 100_000),
        ("tasks.passes", 0, 1000),
        ("tasks.exchange_every", 1, 1000),
        ("tasks.outer_rate", 0.01, 10),
        ("tasks.outer_momentum", 0, 0.999),
        ("pipeline.micro_batches", 1, 4096),
        ("pipeline.replan_gain", 0.01, 10),
        ("pipeline.snapshot_steps", 0, 1_000_000),
        ("group.min_peers", 1, 1000),
        ("group.settle_s", 0, 3600),
        ("group.topk_fraction", 0.0001, 1),
        ("group.replicas", 0, 16),
    ],
)
def test_limits_are_inclusive(key: str, low: float, high: float) -> None:
    for value in (low, high):
        job_from_mapping(changed(key, value), "job")
    beyond = (low - 1, high + 1) if isinstance(high, int) and isinstance(low, int) else (low / 2 - 1e-12, high * 2)
    for value in beyond:
        with pytest.raises(JobError, match=f"{key}: .* is outside"):
            job_from_mapping(changed(key, value), "job")


def piped(**values: object) -> dict[str, Any]:
    """``DIGITS`` as a pipeline; ``values`` as ``table__key``."""
    tables = changed("mode", "pipeline")
    for key, value in values.items():
        table, name = key.split("__")
        tables[table][name] = value
    return tables


@pytest.mark.parametrize(
    ("batch_size", "num", "says"),
    [
        (
            60,
            8,
            "60 is not a multiple of pipeline.micro_batches = 8; take 56 or 64, or another number of micro-batches",
        ),
        (5, 8, "5 is not a multiple of pipeline.micro_batches = 8; take 8, or another"),
    ],
)
def test_a_batch_of_a_pipeline_is_whole_micro_batches(batch_size: int, num: int, says: str) -> None:
    values = {"training__batch_size": batch_size, "pipeline__micro_batches": num}
    with pytest.raises(JobError, match=f"job.toml: training.batch_size: {says}"):
        job_from_mapping(piped(**values), "job.toml")
    job_from_mapping({**piped(**values), "mode": "tasks"}, "job.toml")
    job_from_mapping(piped(training__batch_size=64, pipeline__micro_batches=8), "job.toml")


@pytest.mark.parametrize("mode", ["auto", "tasks", "replicas", "pipeline", "split"])
def test_every_mode_holds_samples_out(mode: str) -> None:
    """As many as the file says, a tenth where it says nothing."""
    tables = changed("mode", mode)
    assert job_from_mapping(tables | {"data": tables["data"] | {"val": 0.2}}, "job.toml").data.val == 0.2
    del tables["data"]["val"]
    assert job_from_mapping(tables, "job.toml").data.val == 0.1


@pytest.mark.parametrize("mode", ["slices", "pipeline"])
@pytest.mark.parametrize("title", ["slices", "pipeline"])
def test_older_files_say_slices(tmp_path: Path, mode: str, title: str) -> None:
    """It is a pipeline from then on."""
    tables = piped()
    tables |= {"mode": mode, title: {"micro_batches": 4}}
    if title != "pipeline":
        del tables["pipeline"]
    job = job_from_mapping(tables, "job.toml")
    assert job.mode == "pipeline" and job.table(PipelineConfig) == PipelineConfig(micro_batches=4)
    assert job.id == job_from_mapping(piped(pipeline__micro_batches=4), "job.toml").id
    assert "slices" not in job.to_json() + job.to_toml()
    path = tmp_path / "job.toml"
    text = job.to_toml().replace('mode = "pipeline"', f'mode = "{mode}"').replace("[pipeline]", f"[{title}]")
    path.write_text("".join(line for line in text.splitlines(True) if not line.startswith("val = ")))
    assert load_job(path) == job


def test_a_table_under_its_old_name_and_its_new_one() -> None:
    with pytest.raises(JobError, match=r"job.toml: slices: the old name of pipeline, which is there too; keep one"):
        job_from_mapping({**piped(), "slices": {}}, "job.toml")
    with pytest.raises(JobError, match=r"job.toml: pipeline.micro_batches: 0 is outside 1\.\.4096"):
        job_from_mapping({**plain(), "slices": {"micro_batches": 0}}, "job.toml")


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        (("group", "custodians"), ("group", "replicas"), 2),
        (("tasks", "calibrate"), ("tasks", "fit_head"), "never"),
        (("tasks", "calibration_steps"), ("tasks", "head_fit_steps"), 77),
    ],
    ids=lambda key: ".".join(key) if isinstance(key, tuple) else "",
)
def test_keys_under_their_old_names(tmp_path: Path, old: tuple[str, str], new: tuple[str, str], value: object) -> None:
    tables = plain()
    today = job_from_mapping({**tables, new[0]: {new[1]: value}}, "job.toml")
    job = job_from_mapping({**tables, old[0]: {old[1]: value}}, "job.toml")
    assert job == today and job.id == today.id
    for text in (job.to_json(), job.to_toml()):
        assert f"{new[1]}" in text and old[1] not in text
    path = tmp_path / "job.toml"
    path.write_text(job.to_toml().replace(new[1], old[1]))
    assert load_job(path) == today
    both = {**tables, old[0]: {old[1]: value, new[1]: value}}
    message = f"job.toml: {old[0]}.{old[1]}: the old name of {new[0]}.{new[1]}, which is there too; keep one of them"
    with pytest.raises(JobError) as refused:
        job_from_mapping(both, "job.toml")
    assert str(refused.value) == message


def test_a_pipeline_takes_text_and_cares_for_no_settings_of_tasks() -> None:
    job_from_mapping(piped(data__kind="text", tasks__fit_head="always"), "job.toml")
    job_from_mapping(piped(tasks__num_groups=11), "job.toml")
    job_from_mapping(piped(tasks__combine="sum", tasks__targets="own"), "job.toml")


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))
def test_no_text_from_the_network_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(JobError):
        job_from_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["name", "seed", "mode", "model", "data", "training.rounds", "data.classes", "data.audio", "data.std", "group"]


@many
@given(st.sampled_from(KEYS), json_values)
def test_any_value_anywhere_is_taken_or_refused(key: str, value: object) -> None:
    """Whatever a stranger's job holds, the answer is a job or a ``JobError``, and a job passes every check."""
    try:
        job = job_from_json(json.dumps(changed(key, value)))
    except JobError:
        return
    check_job(job)
    assert job_from_json(job.to_json()) == job


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"seed":' + "9" * 5000 + "}", "[]", "null", "7", "", '{"name": NaN}'],
)
def test_hostile_json(text: str) -> None:
    with pytest.raises(JobError):
        job_from_json(text)


@pytest.mark.parametrize("key", ["seed", "name", "training.learning_rate", "data.std", "data.val"])
def test_a_number_that_no_float_holds_is_refused(key: str) -> None:
    number = 10**400
    with pytest.raises(JobError, match="too large"):
        job_from_json(json.dumps(changed(key, [number] if key == "data.std" else number)))


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "9" * 5000, "[" * 5000])
def test_a_job_file_with_senseless_numbers_or_lists_is_refused(value: str) -> None:
    with pytest.raises(JobError):
        job_from_text(f"seed = {value}", Path("job.toml"))


def test_a_job_too_large_for_a_message_is_refused() -> None:
    with pytest.raises(JobError, match=f"larger than {MAX_JOB_BYTES} bytes"):
        job_from_json(" " * (MAX_JOB_BYTES + 1))


@pytest.mark.parametrize("init", ["/etc/passwd", "../x.safetensors", "A" * 64])
def test_a_job_from_the_group_names_no_files(init: str) -> None:
    with pytest.raises(JobError, match=r"model\.init: not a sha256"):
        job_from_json(json.dumps(changed("model.init", init)))


# --- files ----------------------------------------------------------------------------------------------------------


def write(path: Path, job: Job) -> Path:
    path.write_text(job.to_toml(), encoding="utf-8")
    return path


def with_init(init: str) -> Job:
    return dataclasses.replace(DIGITS, model=ModelConfig(init=init))


def test_an_init_path_becomes_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "start.safetensors").write_bytes(b"a checkpoint")
    job = load_job(write(tmp_path / "job.toml", with_init("start.safetensors")))
    assert job.model.init == SHA
    assert job.model.init_bytes == len(b"a checkpoint")


def test_the_same_checkpoint_anywhere_is_the_same_job(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.safetensors").write_bytes(b"a checkpoint")
    one = load_job(write(tmp_path / "here" / "job.toml", with_init("c.safetensors")))
    other = load_job(write(tmp_path / "there" / "job.toml", with_init("../here/c.safetensors")))
    assert one.id == other.id


def test_an_init_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"job.toml: model.init: no such file: .*start.safetensors"):
        load_job(write(tmp_path / "job.toml", with_init("start.safetensors")))


def test_an_init_that_is_a_hash_is_left_alone(tmp_path: Path) -> None:
    assert load_job(write(tmp_path / "job.toml", with_init(SHA))).model.init == SHA


def test_files_that_cant_be_read(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no such job file; `p2ptrain job new` writes one"):
        load_job(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    for content in (b"name = ", b"\xff\xfe\x00", b'name = "a"\nname = "b"'):
        bad.write_bytes(content)
        with pytest.raises(JobError, match="not a readable TOML job file"):
            load_job(bad)
    with pytest.raises(JobError, match="not a readable TOML job file"):
        load_job(tmp_path)


def test_keys_of_training_that_came_later_leave_ids_alone() -> None:
    assert not {"warmup", "clip", "precision", "patience"} & json.loads(DIGITS.to_json())["training"].keys()
    changed_ids = set()
    for key, value in {"warmup": 0.2, "clip": 0.0, "precision": "bf16", "patience": 3}.items():
        job = dataclasses.replace(DIGITS, training=dataclasses.replace(DIGITS.training, **{key: value}))
        assert job_from_json(job.to_json()) == job and json.loads(job.to_json())["training"][key] == value
        changed_ids.add(job.id)
    assert len(changed_ids | {DIGITS.id}) == 5


@pytest.mark.parametrize("mode", ["tasks", "replicas", "pipeline", "split"])
def test_an_early_end_needs_validation_samples(mode: str) -> None:
    training = dataclasses.replace(DIGITS.training, patience=2)
    job = dataclasses.replace(DIGITS, mode=mode, training=training)
    check_job(job)
    with pytest.raises(JobError, match=r"data\.val = 0"):
        check_job(dataclasses.replace(job, data=dataclasses.replace(job.data, val=0.0)))


def test_own_code_is_allowed_by_an_option_of_its_kind() -> None:
    assert flags_to_allow(["my:net", "my:loss"], "my:net") == ["--allow-model my:net", "--allow-code my:loss"]
