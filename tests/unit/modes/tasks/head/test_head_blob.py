"""The fitted head as a blob, and as a snapshot beside those of part 0."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId, blob_id
from p2ptrain.modes.tasks.head.blob import head_holding, head_holdings, pack_head
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import to_plain

STATE = tensorfile.pack({"weight": np.ones(3)}, {})


def copy(part: int, round_: int = 5) -> SnapshotRef:
    return SnapshotRef(part, PeerId("a" * 16), 1, round_, 50, 100, blob_id(b"%d" % part), 9)


def test_a_head_names_what_it_was_fitted_over() -> None:
    fitted = (copy(1), copy(0))
    data = pack_head(STATE, fitted)
    assert head_holdings(data) == (copy(0), copy(1))
    head = head_holding(copy(0).trainer, blob_id(data), len(data), fitted, 7, 200)
    assert (head.kind, head.part, head.span, head.round) == ("head", 0, 2, 10)
    assert copy(0).kind == "part"


def test_a_head_of_older_software_is_read() -> None:
    """It does not say that what it names are parts."""
    old = [{key: value for key, value in to_plain(copy(part)).items() if key != "kind"} for part in (0, 1)]
    data = tensorfile.pack({"weight": np.ones(3)}, {"holdings": json.dumps(old)})
    assert head_holdings(data) == (copy(0), copy(1))


@pytest.mark.parametrize("odd", [[3], [None], [{}], [{"kind": "part"}], [to_plain(copy(0)) | {"kind": "pipe"}], [[]]])
def test_what_names_no_snapshots_is_refused(odd: object) -> None:
    with pytest.raises(RemoteError):
        head_holdings(tensorfile.pack({"weight": np.ones(3)}, {"holdings": json.dumps(odd)}))
    of_a_head = [to_plain(dataclasses.replace(copy(0), kind="head"))]
    with pytest.raises(RemoteError, match="another head"):
        head_holdings(tensorfile.pack({"weight": np.ones(3)}, {"holdings": json.dumps(of_a_head)}))
