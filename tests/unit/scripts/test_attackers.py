"""What the attackers of tests and benchmarks send is what it should be: else they would show nothing."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from zeroconf import DNSAddress, DNSIncoming, DNSService, DNSText

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from attackers.made_up import EPOCHS, LIMITS, random_message  # noqa: E402
from attackers.outsider import Announcer  # noqa: E402
from benchmarks.hostile import NUM_CURVE, Watched  # noqa: E402

from p2ptrain.net.discovery import SERVICE  # noqa: E402
from p2ptrain.wire.messages import WIRE_VERSION, SnapshotRef  # noqa: E402


def test_announcements_are_read_as_peers_of_the_group() -> None:
    announcer = Announcer("thetag", random.Random(1))
    try:
        (packet,) = announcer.packets()
    finally:
        announcer.close()
    read = DNSIncoming(packet)
    answers = read.answers()
    assert read.valid and {type(each) for each in answers} >= {DNSService, DNSText, DNSAddress}
    (text,) = (each for each in answers if isinstance(each, DNSText))
    assert b"g=thetag" in text.text and f"v={WIRE_VERSION}".encode() in text.text
    assert all(each.name.endswith(SERVICE) for each in answers if isinstance(each, DNSService))


def test_values_at_the_limits_come_up() -> None:
    rng = random.Random(1)
    made = [random_message(SnapshotRef, rng) for _ in range(300)]
    values = {value for each in made for value in (each.epoch, each.round, each.step, each.samples, each.num_bytes)}
    assert values >= {0, *LIMITS} and 2**63 - 1 in EPOCHS


def test_growth_is_what_comes_in_the_second_half() -> None:
    watched = Watched([float(i) for i in range(100)], [100.0] * 50 + [100.0 + i for i in range(50)], [40.0] * 100)
    figures = watched.figures()
    assert figures["memory_mb"] == 149 and 30 < figures["grown_mb"] < 40 and figures["files"] == 40
    assert figures[f"curve_s_{NUM_CURVE - 1}"] == 99 and figures["curve_mb_0"] == 100
