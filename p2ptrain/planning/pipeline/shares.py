"""How the peers of a stage share a micro-batch, for many runs of blocks at once.

Invariant: the shares are those of ``CostModel.split``, run by run, whichever way they are found: one sample after the
other goes to the peer that then ends first, and nobody holds more than its memory allows. A sample that would surely be
given out is given out at once; that is all that is faster here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from p2ptrain.planning.pipeline.cost import CostModel, Floats

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Which = npt.NDArray[np.intp]
NUM_GUESSES = 3
"""Steps of Newton's method towards the time at which all end together."""
WORTH_A_GUESS = 6
"""Samples for each peer, from which on guessing saves time."""


class Sharing:
    """Peers [peer, run] share the runs [run] from ``starts`` to ``stops``; both are places in the model's cuts."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._least = model.task.model.least_samples
        self._both_s: Floats = model.forward_s + model.backward_s
        self._memory_bytes = np.array([peer.memory_bytes for peer in model.task.peers])
        self.is_proportional = all(peer.times is None for peer in model.task.peers)
        """Then the split is the same for every run, as far as memory allows it."""
        self._flops_per_s = np.array([peer.flops_per_s / peer.slowdown for peer in model.task.peers])

    def seconds(self, peers: Ints, samples: Ints, starts: Ints, stops: Ints) -> Floats:
        """Forward and backward; shapes as they broadcast."""
        took: Floats = self._both_s[peers, samples, stops] - self._both_s[peers, samples, starts]
        return took

    def fits(self, peers: Ints, starts: Ints, stops: Ints, samples: Ints, depths: Ints) -> Mask:
        """[run]: whether each peer has the memory for its samples; ``depths`` [run] of warm-up."""
        fixed, each = self._bytes(starts, stops, depths)
        enough: Mask = np.all(fixed + samples * each <= self._memory_bytes[peers], axis=0)
        return enough

    def caps(self, peers: Ints, starts: Ints, stops: Ints, depths: Ints) -> Ints:
        """[peer, run]: the most samples that each peer's memory allows, as ``most_samples`` counts them."""
        limit = self._model.task.micro_batch
        fixed, each = self._bytes(starts, stops, depths)
        room = self._memory_bytes[peers] - fixed
        most = np.where(each * limit <= room, limit, np.floor(room / np.maximum(each, 1e-9)).clip(0, limit))
        caps: Ints = np.where(room < 0, 0, most).astype(np.int64)
        return caps

    def _bytes(self, starts: Ints, stops: Ints, depths: Ints) -> tuple[Floats, Floats]:
        """Of each run: whatever a peer's share, and for each of its samples."""
        model = self._model
        kept = model.cut_bytes[starts] + model.stored_bytes[stops] - model.stored_bytes[starts]
        under_way = np.minimum(depths, model.task.most_ahead)
        return model.held_bytes[stops] - model.held_bytes[starts], kept * under_way + model.flow_bytes[starts, stops]

    def shares(self, peers: Ints, starts: Ints, stops: Ints, caps: Ints) -> Ints:
        """[peer, run], within ``caps`` [peer, run]; all 0 where there are none."""
        total, least = self._model.task.micro_batch, self._least
        able = (caps.min(axis=0) >= least) & (caps.sum(axis=0) >= total) & (total >= least * len(peers))
        if len(peers) == 1:
            alone: Ints = np.where(able, total, 0)[None, :]
            return alone
        runs = np.flatnonzero(able)
        peers, starts, stops, caps = peers[:, runs], starts[runs], stops[runs], caps[:, runs]
        shares: Ints = np.zeros((len(peers), len(able)), dtype=np.int64)
        held = self._surely(peers, starts, stops, caps)
        self._give_out(peers, starts, stops, caps, held, np.flatnonzero(held.sum(axis=0) < total))
        shares[:, runs] = held
        return shares

    def slowest(self, peers: Ints, starts: Ints, stops: Ints, shares: Ints) -> tuple[Floats, Floats]:
        """Forward and backward seconds of each run; infinite where there are no shares."""
        if self.is_proportional:
            pace = (shares / self._flops_per_s[peers]).max(axis=0)
            flops = (self._model.forward_flops, self._model.backward_flops)
            there, back = (pace * (each[stops] - each[starts]) for each in flops)
        else:
            tables = (self._model.forward_s, self._model.backward_s)
            there, back = ((table[peers, shares, stops] - table[peers, shares, starts]).max(axis=0) for table in tables)
        none = shares[0] == 0
        there[none] = back[none] = np.inf
        return there, back

    def _surely(self, peers: Ints, starts: Ints, stops: Ints, caps: Ints) -> Ints:
        """[peer, run]: no more than each peer's share; at least what each has to have."""
        total, least = self._model.task.micro_batch, self._least
        shares: Ints = np.full((len(peers), len(starts)), least, dtype=np.int64)
        if self.is_proportional:
            return self._quotas(self._flops_per_s[peers], caps)
        if total < WORTH_A_GUESS * len(peers):
            return shares
        guess = np.full_like(shares, total // len(peers))
        for _ in range(NUM_GUESSES):
            low = guess.clip(least, total - 1)
            took = self.seconds(peers, low, starts, stops)
            slope = np.maximum(self.seconds(peers, low + 1, starts, stops) - took, 1e-3 * took / low + 1e-30)
            at_end = (total - (low - took / slope).sum(axis=0)) / (1 / slope).sum(axis=0)
            guess = np.floor(low + (at_end - took) / slope).clip(least, total).astype(np.int64)
        guess = np.where(guess.sum(axis=0) > total, least, guess)
        # Whatever is guessed: somebody's share is no less, so that all samples that take less time are given out.
        surely = self.seconds(peers, guess, starts, stops).min(axis=0)
        step = 1
        while (over := (self.seconds(peers, guess, starts, stops) >= surely) & (guess > least)).any():
            guess = np.maximum(least, guess - step * over)
            step *= 2
        surely_given: Ints = np.maximum(least, np.minimum(guess, caps))
        return surely_given

    def _quotas(self, speeds: Floats, caps: Ints) -> Ints:
        """Everyone's quota by ``speeds`` [peer, run], less the fraction; who can't hold as much is full, and the others
        share what that leaves."""
        total, least = self._model.task.micro_batch, self._least
        is_open = np.ones(caps.shape, dtype=np.bool_)
        shares: Ints = np.full(caps.shape, least, dtype=np.int64)
        for _ in range(len(caps)):
            left = total - np.where(is_open, 0, caps).sum(axis=0)
            quotas = left * (1 - 1e-9) * speeds / np.maximum((is_open * speeds).sum(axis=0), 1e-30)
            given = np.where(is_open, np.minimum(quotas, total).astype(np.int64).clip(least, caps), caps)
            is_sure = given.sum(axis=0) <= total  # else nearly all peers are far slower than one
            shares = np.where(is_sure, given, shares)
            full = is_open & is_sure & (np.floor(quotas) >= caps)
            if not full.any():
                break
            is_open &= ~full
        return shares

    def _give_out(self, peers: Ints, starts: Ints, stops: Ints, caps: Ints, shares: Ints, runs: Ints) -> None:
        """The samples that are left of these runs, one after the other, into ``shares``."""
        total = self._model.task.micro_batch
        peers, caps, held = peers[:, runs], caps[:, runs], shares[:, runs]
        starts, stops = starts[runs], stops[runs]
        left = total - held.sum(axis=0)
        soonest = self.seconds(peers, np.minimum(held + 1, total), starts, stops)
        soonest[held >= caps] = np.inf
        columns = np.arange(len(runs))
        while len(runs):
            taker = soonest.argmin(axis=0)
            now = held[taker, columns] + 1
            held[taker, columns] = now
            left -= 1
            later = self.seconds(peers[taker, columns], np.minimum(now + 1, total), starts, stops)
            soonest[taker, columns] = np.where(now < caps[taker, columns], later, np.inf)
            going = left > 0
            if not going.all():
                shares[:, runs[~going]] = held[:, ~going]
                runs, starts, stops, left = runs[going], starts[going], stops[going], left[going]
                peers, caps, held, soonest = peers[:, going], caps[:, going], held[:, going], soonest[:, going]
                columns = columns[: len(runs)]
