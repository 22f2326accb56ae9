"""When a trainer of units looks how its time goes."""

from __future__ import annotations

from test_split_planner import ANNA, HELPER, MODEL, job, room

from p2ptrain.modes.split.planner import first_plan
from p2ptrain.modes.split.use import LONG_S, UnitsUse


def test_a_device_whose_batches_take_long_looks_in_the_midst_of_one() -> None:
    use = UnitsUse(first_plan(job(), MODEL, room(), HELPER), ANNA, None, {})
    use.begun(0.0, 100.0)
    assert not use.is_due(1, 100.0 + 5 * LONG_S), "not warm yet"
    assert use.is_due(2, 130.0) and use.look(2, 130.0, {}) is None
    assert not use.is_due(2, 130.0 + 0.9 * LONG_S) and use.is_due(2, 130.0 + LONG_S)
    assert use.is_due(12, 130.1)
