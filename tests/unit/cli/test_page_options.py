"""``--web`` and where, and what is said of the link."""

from __future__ import annotations

import pytest

from p2ptrain.cli.shared.options import page_lines, read_page
from p2ptrain.errors import UserError


def test_a_page_is_served_where_it_is_asked_for_and_else_on_loopback() -> None:
    assert read_page(False, None, None) is None
    assert read_page(True, None, None) == ("127.0.0.1", 0)
    assert read_page(True, 8000, "0.0.0.0") == ("0.0.0.0", 8000)


@pytest.mark.parametrize(("port", "listen"), [(8000, None), (None, "0.0.0.0"), (0, None)])
def test_a_place_without_a_page_is_refused(port: int | None, listen: str | None) -> None:
    with pytest.raises(UserError, match="give --web too"):
        read_page(False, port, listen)


def test_who_can_see_the_page_is_said() -> None:
    here = "\n".join(page_lines(["http://127.0.0.1:8000/x/"]))
    assert "browsers on this device" in here and "encrypted" not in here
    for links in (["http://192.168.1.7:8000/x/"], ["http://192.168.1.7:8000/x/", "http://127.0.0.1:8000/x/"]):
        assert "not encrypted" in "\n".join(page_lines(links)) and "browsers on this device" not in "\n".join(
            page_lines(links)
        )
