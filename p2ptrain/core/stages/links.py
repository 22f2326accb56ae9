"""What a peer has to do with the others' stages beside its plan: stage messages, measured links, profiles of blocks.

Invariant: the own record names the profile and the link figures that are known here, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

from p2ptrain.core.effects import Effects, Handler, MessageHandler, Reconsider, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.stages.commands import LookAgain, Looked, Profiled, StageUsed, Taken
from p2ptrain.core.stages.reports import StageReports
from p2ptrain.core.stages.traffic import StageTraffic
from p2ptrain.ids import PeerId
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import model_from_json
from p2ptrain.protocol.blobs.profile_book import ProfileBook, ProfileLearnt
from p2ptrain.protocol.group.link_probe import LinkMeasured, LinkMeter
from p2ptrain.protocol.machine import Machine
from p2ptrain.protocol.streams.streams import Delivered
from p2ptrain.wire import messages as m


class StageLinks:
    """Of one peer, in one job. What a role handles of it is in ``handlers``, ``trainer_events`` and ``messages``."""

    def __init__(self, group: GroupView, rng: random.Random) -> None:
        self.model: ModelProfile | None = None
        """The blocks of the job's model, once the trainer has counted them."""
        self.traffic = StageTraffic(group)
        self.reports = StageReports(group, self.traffic)
        self._group = group
        self._profiles = ProfileBook()
        self._meter = LinkMeter(group.own_id, rng)
        self._machines: tuple[Machine, ...] = (self.traffic, self._meter, self._profiles)
        self.profile_of: Callable[[str], bytes | None] = self._profiles.get
        """What a record's ``profile`` names, if it is here."""
        self.handlers: Mapping[type, Handler] = {
            Delivered: self.traffic.delivered,
            LinkMeasured: lambda e, now: self.reports.link(e, self._meter.figures(), now),
            ProfileLearnt: lambda _, now: [Reconsider()],
        }
        self.trainer_events: Mapping[type, Handler] = {
            Profiled: self._profiled,
            Taken: self.traffic.taken,
            StageUsed: self.reports.used,
            Looked: self.reports.looked,
        }
        self.messages: Mapping[type[m.Message], MessageHandler] = {
            m.StreamData: self.traffic.received,
            m.StreamAck: self.traffic.received,
            m.LinkProbe: lambda s, msg, now: list(self._meter.received(s, msg, now)),
            m.LinkEcho: lambda s, msg, now: list(self._meter.received(s, msg, now)),
            m.ProfileRequest: lambda s, msg, now: list(self._profiles.received(s, msg, now)),
            m.ProfileReply: lambda s, msg, now: list(self._profiles.received(s, msg, now)),
        }

    def _profiled(self, event: Profiled, now: float) -> Effects:
        self.model = model_from_json(event.model)
        return self._group.say(now, profile=self._profiles.set_own(event.profile.encode()))

    def plan_adopted(self, *, has_work: bool, now: float) -> Effects:
        """The trainer waits for its work, or stands by."""
        if not has_work:
            self.reports.slowdown.stand_by(now)
            return self._group.say(now, phase="waiting", samples_per_s=0.0)
        return self._group.say(now, phase="waiting") if self._group.own.phase in ("training", "trained") else []

    def members_changed(self, now: float) -> Effects:
        profiles = self._profiles.members_changed(self._group.records(), now)
        return [*profiles, *self._meter.members_changed(self._group.members(), now)]

    def measure_again(self, peers: Iterable[PeerId], now: float) -> Effects:
        """The links to these seem to carry less than is known."""
        return list(self._meter.measure_again(peers, now))

    def tick(self, now: float) -> Effects:
        looks: Effects = [ToTrainer(LookAgain())] if self.reports.slowdown.is_due(now) else []
        return [*(effect for machine in self._machines for effect in machine.tick(now)), *looks]

    def next_deadline(self) -> float:
        return min(*(machine.next_deadline() for machine in self._machines), self.reports.slowdown.look_at)
