"""When a trainer is said to hang, and when it is not."""

from __future__ import annotations

from p2ptrain.core.commands import Beat, Configure
from p2ptrain.runtime.trainer.beats import BEAT_S, Beats
from p2ptrain.runtime.trainer.watch import (
    GETTING_READY,
    SERVING,
    SPINNING_S,
    STARTING_S,
    STILL_S,
    TRAINING,
    Silence,
    TrainerWatch,
)


class Watched:
    """A trainer in virtual time, looked at every second."""

    def __init__(self) -> None:
        self.now, self.cpu_s = 50.0, 0.0
        self.watch = TrainerWatch(self.now)
        self.last: Silence | None = None

    def passes(self, seconds: float, load: float = 0.0) -> bool:
        """Whether it hung at the end of so many seconds of silence."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.cpu_s += load
            self.last = self.watch.look(self.cpu_s, self.now)
            if self.last is not None and self.last.hangs:
                return True
        return False

    def works(self, doing: str, pause_s: int = 1, times: int = 20, load: float = 1.0) -> None:
        for _ in range(times):
            self.watch.heard(doing)
            assert not self.passes(pause_s, load)


def test_one_that_stands_still_is_noticed_by_its_usual_pace() -> None:
    quick = Watched()
    quick.works(TRAINING)
    assert not quick.passes(STILL_S - 2)
    assert quick.passes(5) and "while training (usually 1 s at most)" in str(quick.last)
    slow = Watched()
    slow.works(TRAINING, pause_s=20)
    assert not slow.passes(29 * 20)
    assert slow.passes(2 * 20), "thirty times as long as usual"


def test_one_that_waits_for_commands_does_not_hang() -> None:
    idle = Watched()
    idle.works(TRAINING)
    idle.watch.heard("")
    assert not idle.passes(100_000)
    idle.watch.heard(SERVING)
    assert idle.passes(STILL_S + 2)


def test_one_that_computes_is_given_far_longer() -> None:
    busy = Watched()
    busy.works(TRAINING)
    assert not busy.passes(SPINNING_S - 2, load=1.0), "a validation at the end of a round, say"
    assert busy.passes(5, load=1.0), "but not for ever"


def test_one_that_is_starved_moves() -> None:
    starved = Watched()
    starved.works(TRAINING, load=0.01)
    assert not starved.passes(1000, load=0.01)


def test_getting_ready_takes_as_long_as_the_data_need() -> None:
    loading = Watched()
    assert not loading.passes(STARTING_S - 2) and loading.last is not None and loading.last.doing == "starting"
    loading.watch.heard(GETTING_READY)
    assert not loading.passes(3000, load=0.3)


def test_a_stall_of_the_node_is_no_silence_of_its_trainer() -> None:
    asleep = Watched()
    asleep.works(TRAINING)
    asleep.now += 8 * 3600.0
    assert not asleep.passes(STILL_S - 5)


def test_where_processor_time_is_not_known_only_the_long_limit_counts() -> None:
    watch, now = TrainerWatch(0.0), 0.0
    watch.heard(TRAINING)
    while now < SPINNING_S - 1:
        now += 1.0
        silence = watch.look(None, now)
        assert silence is not None and not silence.hangs
    silence = watch.look(None, now + 1.0)
    assert silence is not None and silence.hangs


def test_a_trainer_says_what_it_does_and_seldom() -> None:
    said: list[Beat] = []
    times = [0.0]
    beats = Beats(said.append, lambda: times[0])  # type: ignore[arg-type]
    beats.begins(Configure("{}", "", "name"))
    for _ in range(1000):
        times[0] += BEAT_S / 64
        beats.begins(None)
    beats.waits()
    beats.waits()
    beats.begins(Beat(""))
    words = [each.doing for each in said]
    assert words == [GETTING_READY, *[TRAINING] * 15, "", SERVING]
