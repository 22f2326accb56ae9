"""How each source of addresses fares, in words."""

from __future__ import annotations

import dataclasses

from p2ptrain.protocol.session.address_book import Unanswered
from p2ptrain.runtime.peer.waiting import finding_words


def test_each_source_says_how_it_fares() -> None:
    tried = [
        Unanswered("tcp://10.0.0.3:4711", "remembered", 1),
        Unanswered("tcp://10.0.0.2:41395", "mdns", 12),
        Unanswered("tcp://10.0.0.4:4711", "peer", 0),
    ]
    words = finding_words(tried, {"mDNS": "failed: why"})
    assert words == (
        "10.0.0.2:41395, found by mDNS, doesn't answer (12 tries); "
        "10.0.0.3:4711, remembered from last time, doesn't answer (1 try); mDNS failed: why"
    )
    assert finding_words([], {}) == ""


def test_who_answers_is_not_said_to_be_silent() -> None:
    shut = Unanswered("tcp://10.0.0.2:5710", "given", 3, "there")
    assert finding_words([shut], {}) == (
        "10.0.0.2:5710, given by --peer, answers, and does not let this device in so far (3 tries)"
    )
    words = finding_words([dataclasses.replace(shut, shut="here")], {})
    assert words == "10.0.0.2:5710, given by --peer, answers, and has not been let in so far (3 tries)"
    words = finding_words([Unanswered("tcp://10.0.0.2:5710", "given", 3)], {}, other_version=True)
    assert words == (
        "a peer of another version of p2ptrain was met: install the same on all; 10.0.0.2:5710, given by --peer, "
        "led to nobody of this version so far (3 tries)"
    )


def test_it_stays_short_and_the_users_own_come_first() -> None:
    many = [Unanswered(f"tcp://10.0.0.{n}:1", "peer", 1) for n in range(100)]
    words = finding_words([*many, Unanswered("tcp://[fe80::1%eth0]:2", "given", 3)], {})
    assert words.startswith("[fe80::1%eth0]:2, given by --peer, doesn't answer (3 tries); ")
    assert words.endswith("; nor do 98 other addresses") and len(words) < 256
