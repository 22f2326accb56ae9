"""What a split plan is to be compared with: each a full plan of the same kind, so that it can be run.

``ALTERNATING`` is the method of the papers on split learning with individual cuts: cuts for given shares by looking
through them, then shares for these cuts so that all end together, by turns until nothing changes. All but ``ALONE`` and
``UNSPLIT`` give every owner a helper: owners that help nobody, the heaviest first, each to the helper that then has the
fewest tails for its speed; helpers are those without samples, or else the fastest peer. Micro-batches and coding are
those that are best for the cut, so that only what the name says is different from the plan.

Invariant: pure. A strategy that does not fit into the memory of these peers is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from p2ptrain.planning.split.cost import plan_of
from p2ptrain.planning.split.group import Choice, soonest_of_all
from p2ptrain.planning.split.options import Options
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.end import Mask, exchange_s
from p2ptrain.planning.split.search import Search
from p2ptrain.planning.split.units import SplitPlan

ALONE = "all alone"
MID_CUT = "one mid cut"
COMMON_CUT = "best common cut, equal shares"
CUTS_ONLY = "cuts only"
SHARES_ONLY = "shares only"
ALTERNATING = "alternating"
UNSPLIT = "no micro-batches in flight"
ALTERNATIONS = 20
Assigned = dict[str, Choice | None]
Chosen = tuple[float, Assigned]
"""Seconds of a round by the closed figures, and what each owner does."""


def strategies() -> dict[str, Callable[[Search, SplitPlan], SplitPlan | None]]:
    """By name; each takes the plan that it is compared with, too."""
    return {
        ALONE: lambda search, _: all_alone(search.room),
        MID_CUT: lambda search, _: _plan(search, _with_cut(search, search.room.tables.num_units // 2, is_equal=True)),
        COMMON_CUT: lambda search, _: _plan(search, _best_common(search, is_equal=True)),
        CUTS_ONLY: lambda search, _: _plan(search, _chosen(search, _dealt(search), is_equal=True)),
        SHARES_ONLY: lambda search, _: _plan(search, _best_common(search, is_equal=False)),
        ALTERNATING: lambda search, _: _plan(search, _alternating(search)),
        UNSPLIT: unsplit,
    }


def all_alone(room: Room) -> SplitPlan | None:
    """None where somebody has not the memory."""
    if any(room.alone(owner) is None for owner in room.owners):
        return None
    return plan_of(room, dict.fromkeys(room.owners))


def baselines(search: Search) -> list[SplitPlan]:
    """Those that need no plan to begin with and give every owner a helper; in a large room the alternating method's."""
    found = [_alternating(search)]
    if search.is_exact:
        dealt = _dealt(search)
        found += [_best_common(search, is_equal=is_equal) for is_equal in (True, False)]
        found.append(_chosen(search, dealt, is_equal=True))
    return [plan for plan in (_plan(search, each) for each in found) if plan is not None]


def unsplit(search: Search, planned: SplitPlan) -> SplitPlan | None:
    """The same helpers, cuts and codings, but the papers' order: a batch goes as a whole, and one step waits for the
    other. Shares are those that are best then."""
    room, given = search.room, {}
    for unit in planned.units:
        if unit.helper is not None:
            options = search.options[unit.owner, unit.helper]
            fits = (options.cuts == room.cuts.index(unit.cut)) & (options.micro_batches == 1)
            fits &= options.coding == room.task.codings.index(unit.activations)
            given[unit.owner] = options.only(fits)
    return _plan(search, _chosen(search, given, is_equal=False))


def _plan(search: Search, chosen: Chosen | None) -> SplitPlan | None:
    return plan_of(search.room, chosen[1]) if chosen is not None else None


def _with_cut(search: Search, cut: int, *, is_equal: bool) -> Chosen | None:
    return _chosen(search, _only(_dealt(search), lambda options: options.cuts == cut), is_equal=is_equal)


def _best_common(search: Search, *, is_equal: bool) -> Chosen | None:
    cuts = range(1, search.room.tables.num_units)
    found = [each for each in (_with_cut(search, cut, is_equal=is_equal) for cut in cuts) if each is not None]
    return min(found, key=lambda each: each[0], default=None)


def _alternating(search: Search) -> Chosen | None:
    """The best that it comes by, from equal shares on. Each unit is taken to have as much of its helper's time."""
    dealt = _dealt(search)
    if dealt is None:
        return None
    shares, best = _equal_shares(search, dealt), None
    for _ in range(ALTERNATIONS):
        chosen: dict[str, Options] = {}
        for owner, options in dealt.items():
            many = sum(other.helper == options.helper for other in dealt.values())
            helper_s = search.helpers[options.helper].own_s + many * options.helper_s
            took = np.maximum(options.round_s(shares[owner]), helper_s) + options.owner_exchange_s
            if not len(took):
                return None
            chosen[owner] = options.only(np.array([int(took.argmin())]))
        found = _chosen(search, chosen, is_equal=False)
        if found is None or (best is not None and found[0] >= best[0]):
            break
        best = found
        shares = {owner: choice.share for owner, choice in found[1].items() if choice is not None}
    return best


def _dealt(search: Search) -> dict[str, Options] | None:
    """The options of every owner with the helper that it is given; None where somebody gets none."""
    room, last = search.room, search.room.tables.num_units
    pace = {name: float(sum(each[last] for each in room.seconds(name, 1.0))) for name in search.helpers}
    helpers = [name for name in search.helpers if not room.peers[name].samples]
    helpers = helpers or sorted(pace, key=lambda name: (pace[name], name))[:1]
    owners = [owner for owner in room.owners if owner not in helpers]
    if not helpers or not owners:
        return None
    weight = {owner: _alone_s(search, owner) for owner in owners}
    counts = dict.fromkeys(helpers, 0)
    dealt = {}
    for owner in sorted(owners, key=lambda owner: (-weight[owner], owner)):
        able = [name for name in helpers if (owner, name) in search.options]
        if not able:
            return None
        name = min(able, key=lambda name: ((counts[name] + 1) * pace[name], name))
        counts[name] += 1
        dealt[owner] = search.options[owner, name]
    return dealt


def _alone_s(search: Search, owner: str) -> float:
    alone = search.room.alone(owner)
    return alone.round_s if alone is not None else math.inf


def _only(dealt: Mapping[str, Options] | None, fits: Callable[[Options], Mask]) -> dict[str, Options] | None:
    return None if dealt is None else {owner: options.only(fits(options)) for owner, options in dealt.items()}


def _equal_shares(search: Search, given: Mapping[str, Options]) -> dict[str, float]:
    """Of the helper's link, or of the medium, for each of those that share it."""
    is_shared = search.room.task.medium == "shared"
    return {
        owner: 1 / sum(is_shared or other.helper == options.helper for other in given.values())
        for owner, options in given.items()
    }


def _chosen(search: Search, given: Mapping[str, Options] | None, *, is_equal: bool) -> Chosen | None:
    """The options with which training ends soonest, with equal shares or those that are best; all others alone."""
    room = search.room
    if given is None or any(room.alone(owner) is None for owner in room.owners if owner not in given):
        return None
    shares = _equal_shares(search, given)
    options = {owner: _pinned(each, shares[owner]) if is_equal else each for owner, each in given.items()}
    groups = {
        search.helpers[name]: [options[owner] for owner in sorted(options) if options[owner].helper == name]
        for name in sorted({each.helper for each in options.values()})
    }
    took = soonest_of_all(groups, 1.0, is_shared=room.task.medium == "shared")
    if took is None:
        return None
    assigned: Assigned = dict.fromkeys(room.owners)
    for choice in took[1]:
        owner = choice.options.owner
        assigned[owner] = replace(choice, options=given[owner], share=shares[owner] if is_equal else choice.share)
    placed = [
        (owner, choice.options.helper if choice else None, _cut(search, choice)) for owner, choice in assigned.items()
    ]
    slowest = max([took[0], *(_alone_s(search, owner) for owner, choice in assigned.items() if choice is None)])
    return slowest + exchange_s(room, placed), assigned


def _cut(search: Search, choice: Choice | None) -> int:
    return search.room.tables.num_units if choice is None else int(choice.options.cuts[choice.index])


def _pinned(options: Options, share: float) -> Options:
    """With that share of the link, whatever happens."""
    return replace(options, fixed_s=options.fixed_s + options.shared_s / share, shared_s=0 * options.shared_s)
