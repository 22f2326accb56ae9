"""What a plan says of one peer is what the planner reckoned with."""

from __future__ import annotations

import pytest
from test_pipeline_planner import job, model, name, peer

from p2ptrain.modes.pipeline import words
from p2ptrain.modes.pipeline.figures import fleet_of
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.planner import first_plan
from p2ptrain.modes.pipeline.predicted import predicted

pytestmark = pytest.mark.usefixtures("no_work_for_messages")


def test_a_stage_computes_and_sends_as_planned() -> None:
    wanted, blocks = job(strategy="equal"), model()
    plan = first_plan(wanted, blocks, [peer(0), peer(1, 2e9), peer(2)], name(0))
    pipeline = body_of(plan).pipeline
    cost = fleet_of(wanted, blocks, plan.peers, body_of(plan).figures).cost(pipeline)
    assert [stage.start for stage in pipeline.stages] == [0, 2, 4]
    found = [predicted(wanted, blocks, plan, stage.peers[0]) for stage in pipeline.stages]
    for index, each in enumerate(found):
        assert each["planned_batch_s"] == pytest.approx(cost.batch_s)
        assert each["planned_computes"] == pytest.approx(cost.timeline.busy_share(index))
    sent = [each["planned_sends_bytes_per_s"] * cost.batch_s for each in found]
    assert sent == pytest.approx([16 * 100, 2 * 16 * 100, 16 * 100]), "16 samples of 100 bytes, there, and back"


def test_peers_of_one_stage_average_its_gradients() -> None:
    wanted, blocks = job(strategy="data-parallel"), model(parameter_bytes=3000)
    plan = first_plan(wanted, blocks, [peer(0), peer(1), peer(2)], name(0))
    (stage,) = body_of(plan).pipeline.stages
    found = predicted(wanted, blocks, plan, stage.peers[0])
    assert found["planned_sends_bytes_per_s"] * found["planned_batch_s"] == pytest.approx(4 / 3 * 6 * 3000)


def test_of_nobody_without_a_stage_and_of_no_other_blocks() -> None:
    wanted, blocks = job(), model()
    plan = first_plan(wanted, blocks, [peer(0), peer(1)], name(0))
    assert predicted(wanted, blocks, plan, name(7)) == {}
    (first, *_) = body_of(plan).pipeline.stages[0].peers
    assert predicted(wanted, model(5), plan, first) == {} != predicted(wanted, blocks, plan, first)


def test_classes_that_the_first_stage_lacks_are_told() -> None:
    has, lacks = (10, 10, 10, 0), (0, 0, 0, 10)
    plan = first_plan(job(), model(), [peer(0, counts=has), peer(1, 1e3, counts=lacks)], name(0))
    assert words.plan_notes(plan, job(), name(0)) == [
        "NOBODY WHOSE SAMPLES ARE TRAINED ON HAS SOME OF d: the model will not know it until another plan takes in who "
        "has"
    ]
    plan = first_plan(job(), model(), [peer(0, counts=has), peer(1, counts=())], name(0))
    (told,) = words.plan_notes(plan, job(), name(1))
    assert told.startswith("NOBODY HAS SAMPLES OF d: the model will not know it; bring a peer that has some")
