"""The global model as a plan divides it: the one place that knows how each mode builds, names and assembles parts.

Invariant: every peer that holds the same job and plan builds the same parts, with the same initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import LocalError, UserError
from p2ptrain.learning.blocks.flops import NEEDS_NUMBERS, Flops, training_flops
from p2ptrain.learning.candidates import FITTED, owner_of, part_left_out, part_of
from p2ptrain.learning.head_fit import plain_head
from p2ptrain.learning.initial import fit, fitting_scores, start_from
from p2ptrain.learning.models import global_model
from p2ptrain.learning.models.freezing import frozen_names
from p2ptrain.learning.own.outputs import find_head
from p2ptrain.learning.robust.means import robust_mean
from p2ptrain.learning.snapshots import put_state
from p2ptrain.learning.submodels.decoupling import Decoupling
from p2ptrain.learning.validation import UNKNOWN, Head
from p2ptrain.learning.work import central_flops, fewest_samples
from p2ptrain.modes.tasks.plan import body_of

State = Mapping[str, Tensor]
WHOLE = -1


class Parts:
    """``init``: a checkpoint's tensors to start from, and ``scores`` its attribution of channels to classes."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        *,
        allow_user_code: bool = False,
        init: State | None = None,
        scores: State | None = None,
    ) -> None:
        self.plan = plan
        self.body = body_of(plan)
        self._job = job
        self._head: str | None = None
        self._allow_user_code = allow_user_code
        self.model = self._fresh_model()
        if init is not None:
            start_from(self.model.state_dict(), fit(init, self.model.state_dict(), job.model.name))
        self._fresh = init is None
        self._frozen = frozen_names(self.model, job.model.freeze)
        self._is_text = job.data.kind == "text"
        self._flops: dict[int, Flops] = {}
        self.decoupling: Decoupling | None = None
        if plan.mode == "tasks":
            self.decoupling = Decoupling(
                self.model,
                job.data.input_shape,
                [part.classes for part in self.body.parts],
                shares=[part.share for part in self.body.parts],
                trunk=self.body.trunk,
                scores=fitting_scores(scores or {}, self.model.state_dict(), len(job.data.classes), job.model.name),
            )

    def _fresh_model(self) -> nn.Module:
        return global_model(self._job, allow_user_code=self._allow_user_code)

    def flops(self, part: int) -> Flops:
        """What a part costs, per sample; zeros where it can't be counted."""
        return self._counted(part, lambda: self.submodel(part)) if self.decoupling is not None else self.whole_flops()

    def whole_flops(self) -> Flops:
        """What the whole model costs, per sample."""
        return self._counted(WHOLE, lambda: self.model)

    def _counted(self, which: int, model: Callable[[], nn.Module]) -> Flops:
        if which not in self._flops:
            try:
                self._flops[which] = training_flops(model(), self._job.data.input_shape)
            except NEEDS_NUMBERS:  # somebody's own code, that runs on real samples alone
                self._flops[which] = Flops(0, 0)
        return self._flops[which]

    def central_flops(self) -> int:
        """What training the whole model would cost one device that has everybody's samples, at least."""
        config = self._job.training
        samples = fewest_samples(peer.counts for peer in self.plan.peers)
        return central_flops(self.whole_flops().total, samples, config.rounds * config.epochs_per_round)

    def submodel(self, part: int) -> nn.Module:
        """What the trainers of this part train."""
        if self.decoupling is None:
            model = self._fresh_model()  # not a copy: tensors that are computed from others can't be copied
            put_state(model, self.model.state_dict())
            return model
        return self.decoupling.submodel(part, self.body.targets, rescale=self._fresh)

    @property
    def head(self) -> str:
        """Qualified name of the last layer, the one that the head fit fits again. Raises ``JobError``."""
        if self.decoupling is not None:
            return self.decoupling.head
        if self._head is None:
            self._head = find_head(self._fresh_model(), self._job.data)
        return self._head

    def head_of(self, state: State) -> dict[str, Tensor]:
        """The last layer's own tensors of a part's state."""
        return {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] == self.head}

    def head_columns(self, part: int) -> Tensor | None:
        """Which columns of the global head a part's features are; ``None`` = all."""
        return self.decoupling.view(part).axes[f"{self.head}.weight"][1] if self.decoupling is not None else None

    def joined_head(self, heads: Mapping[int, State]) -> dict[str, Tensor]:
        """``weight`` [C, F] and ``bias`` of the global head put together from parts' own (``heads``: by part)."""
        whole = self.assemble(
            {part: [(1.0, dict(self.submodel(part).state_dict()) | dict(own))] for part, own in heads.items()}
        )
        return {n: whole[f"{self.head}.{n}"] for n in ("weight", "bias") if f"{self.head}.{n}" in whole}

    def head_alone(self, part: int, own: State) -> tuple[Head, tuple[int, ...]]:
        """A part's own head over the features of all parts, and the classes that it was trained on.

        Of other classes it never takes a sample for one.
        """
        classes = self.trained_classes(part)
        if self.body.targets == "all" and self.decoupling is not None:
            columns = self.head_columns(part)
            rows = own[f"{self.head}.weight"].float()
            weight = torch.zeros(self.model.state_dict()[f"{self.head}.weight"].shape)
            weight[:, columns if columns is not None else slice(None)] = rows
            bias = own.get(f"{self.head}.bias", torch.zeros(rows.shape[0])).float().clone()
        else:
            joined = self.joined_head({part: own})
            weight = joined["weight"].float()
            bias = joined.get("bias", torch.zeros(weight.shape[0])).float().clone()
        unknown = torch.ones(weight.shape[0], dtype=torch.bool)
        unknown[list(classes)] = False
        weight[unknown], bias[unknown] = 0.0, UNKNOWN
        return Head(weight, bias), classes

    def outputs(self, part: int) -> Sequence[int]:
        """The class of each of a sub-model's outputs; without the last one of targets "rest"."""
        all_classes = self.decoupling is None or self.body.targets == "all"
        return range(self.body.num_classes) if all_classes else self.body.parts[part].classes

    def trained_classes(self, part: int, trainer: str = "") -> tuple[int, ...]:
        """The classes that a part's trainers (or one of them) have samples of, where it learns all that they have; else
        its own."""
        spec = self.body.parts[part]
        trainers = (trainer,) if trainer else spec.trainers
        counts = [peer.counts for peer in self.plan.peers if peer.peer in trainers and peer.counts]
        if self.body.targets != "all" or not counts or self._is_text:
            return spec.classes
        return tuple(c for c in range(self.body.num_classes) if any(each[c] for each in counts))

    def with_head(self, state: State, head: State) -> dict[str, Tensor]:
        """The global state with a fitted head (``weight``, ``bias``) in place of its own."""
        return dict(state) | {f"{self.head}.{n}": t for n, t in head.items() if f"{self.head}.{n}" in state}

    def head_without(self, left_out: Collection[int], heads: Mapping[int, State], fitted: State) -> Head:
        """The fitted head, or if ``fitted`` is none the joined one, without what some parts' features say.

        ``heads``: parts' own last layers, as ``head_of`` has them.
        """
        if "whiten" not in fitted:
            joined = self.joined_head({part: own for part, own in heads.items() if part not in left_out})
            return Head(joined["weight"], joined.get("bias", torch.zeros(joined["weight"].shape[0])))
        plain = plain_head(fitted)
        weight, bias = plain["weight"].clone(), plain["bias"].clone()
        for part in left_out:
            columns = self.head_columns(part)
            if columns is not None:  # in place of the features stands their mean
                bias += weight[:, columns] @ fitted["mean"][columns]
                weight[:, columns] = 0.0
        return Head(weight, bias)

    def may_leave_out(self, part: int, *, is_fitted: bool) -> bool:
        """Whether the others, of which there are two at least, know all classes without it."""
        if self.decoupling is None or len(self.body.parts) < 3:
            return False
        others = {c for each in self.body.parts if each.index != part for c in self.trained_classes(each.index)}
        votes = self.body.targets == "all" and (is_fitted or self.body.combine == "sum")
        return votes and others.issuperset(self.trained_classes(part))

    def with_candidate(
        self, state: State, name: str, fitted: State, means: Mapping[int, State], own: Mapping[str, State]
    ) -> dict[str, Tensor]:
        """The global state with a candidate's head, or a member's own copy in its place.

        ``fitted``: the fit's last state; ``means``: the parts' states; ``own``: the copies, by trainer. Raises
        ``UserError`` for a copy that is not among these.
        """
        part, owner = part_of(name), owner_of(name)
        if owner is not None:
            if owner not in own or self.decoupling is not None:
                raise UserError(f"the group took {owner}'s own copy, and it is not among those found; harvest again")
            return dict(own[owner])
        if name == FITTED:
            return self.with_head(state, plain_head(fitted))
        if part is not None and part in means:
            head, _ = self.head_alone(part, self.head_of(means[part]))
            return self.with_head(state, {"weight": head.weight, "bias": head.bias})
        less = part_left_out(name)
        if less is not None:
            heads = {index: self.head_of(own) for index, own in means.items()}
            head = self.head_without([less], heads, fitted)
            return self.with_head(state, {"weight": head.weight, "bias": head.bias})
        return dict(state)

    def shard_names(self, part: int, shard: str) -> frozenset[str]:
        """The tensors of a part that belong to a shard: what two peers average when both hold that shard."""
        if shard not in self.body.parts[part].shards:
            raise LocalError(f"part {part} holds no shard {shard!r}")
        if self.decoupling is None:
            return frozenset(self.model.state_dict()) - self._frozen
        trunk = self.decoupling.trunk_names
        return trunk if shard == "trunk" else frozenset(self.model.state_dict()) - trunk

    @property
    def has_trunk(self) -> bool:
        """Whether parts share layers, which are averaged over all of them."""
        return self.decoupling is not None and bool(self.decoupling.trunk_names)

    def mean_of(self, part: int, copies: Sequence[tuple[float, State]]) -> dict[str, Tensor]:
        """Of copies of a part with their masses, in peer-id order, as the job says."""
        return robust_mean(copies, self._job.group.robust, self.submodel(part).state_dict())

    def assemble(self, copies: Mapping[int, Sequence[tuple[float, State]]]) -> dict[str, Tensor]:
        """The global state. ``copies``: for every part its copies with their masses, in peer-id order.

        Raises ``RemoteError`` for a part of which no copy is sound.
        """
        parts = {part: self.mean_of(part, versions) for part, versions in copies.items()}
        if self.decoupling is None:
            (state,) = parts.values()
            return state
        trunk = None
        if self.decoupling.trunk_names:
            names = self.decoupling.trunk_names
            like = {n: t for n, t in self.model.state_dict().items() if n in names}
            everyone = [(m, s) for _, versions in sorted(copies.items()) for m, s in versions]
            trunk = robust_mean(
                [(m, {n: s[n] for n in names if n in s}) for m, s in everyone], self._job.group.robust, like
            )
        return self.decoupling.assemble(
            parts, targets=self.body.targets, combine=self.body.combine, trunk=trunk, base=None
        )
