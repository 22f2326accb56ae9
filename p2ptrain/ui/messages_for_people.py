"""What a peer's journal says, in sentences for the person at the device.

Invariant: one line of the journal gives one sentence or none; what needs no attention gives none, and a kind of line
that is not known here gives none either. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2ptrain.runtime.node.journal import Line, Value
from p2ptrain.words import clean, link_rate, percent, scaled

Fields = Mapping[str, Value]


def tell(line: Line) -> str | None:
    """The sentence for a line of the journal."""
    say = _SENTENCES.get(line.kind)
    return say(line.fields) if say else None


def round_sentence(fields: Fields, rounds: int, samples_per_s: float, accuracy: float = -1.0, left: str = "") -> str:
    """``accuracy``: on the own validation samples, -1 where there are none; ``left``: how long the rest will take."""
    speed = f", {samples_per_s:.0f} samples/s" if samples_per_s else ""
    loss = f", loss {_number(fields, 'loss'):.3f}" if "loss" in fields else ""
    val = f", {percent(accuracy)} of own validation samples right" if accuracy >= 0 else ""
    skipped = f", {fields['skipped']} batches without a finite loss were skipped" if "skipped" in fields else ""
    what = f"{loss}{val}{speed}{skipped}{f'; about {left} left' if left else ''}"
    return f"round {fields.get('round')}{f'/{rounds}' if rounds else ''} done{what}"


def _number(fields: Fields, name: str) -> float:
    value = fields.get(name)
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _text(fields: Fields, name: str) -> str:
    return clean(str(fields.get(name, "?")), 300)


def _who(fields: Fields) -> str:
    return _text(fields, "name") if fields.get("name") else _text(fields, "peer")


def _best(fields: Fields) -> str:
    right = f"{percent(_number(fields, 'accuracy'))} of {_number(fields, 'samples'):,.0f} right"
    return f"; its best state is that after round {_text(fields, 'best')}, {right} (`p2ptrain harvest --best`)"


def _hosts(fields: Fields) -> str:
    return ", ".join(each.removeprefix("tcp://") for each in _text(fields, "addresses").split()[:4]) or "none"


def _host(fields: Fields) -> str:
    return _text(fields, "address").removeprefix("tcp://")


def _versions(fields: Fields) -> str:
    return f"it speaks wire version {_text(fields, 'theirs')}, this peer {_text(fields, 'ours')}: update the older one"


def _training(fields: Fields) -> str:
    done, rounds = fields.get("round"), fields.get("rounds")
    if done == rounds:
        return f"part {fields.get('part')} has had all its {rounds} rounds already"
    start = f"goes on after round {done}" if done else "begins"
    return f"training of part {fields.get('part')} {start} ({rounds} rounds)"


def _frame_refused(fields: Fields) -> str | None:
    if fields.get("reason") == "twin":
        return (
            f"{_text(fields, 'peer')}: {_text(fields, 'why')} (was a state directory copied?); the one that started "
            "later is turned away: delete identity.key in its state directory and start it again"
        )
    if fields.get("reason") == "proof":
        return f"{_text(fields, 'peer')} was turned away: it does not hold the join code of this group"
    return None


def _goes_back(fields: Fields) -> str:
    step, batches = fields.get("step"), fields.get("batches")
    gone = f" without {_text(fields, 'without')}" if fields.get("without") else ""
    to = f"to what is saved after batch {step}" if step else "to the beginning"
    if not batches:
        return f"the group goes back {to}{gone}: no batch that was done is lost"
    lost = "1 batch is" if batches == 1 else f"{batches} batches are"
    return f"the group goes back {to}{gone}: {lost} lost and done again"


def _overtaken(fields: Fields) -> str:
    batches, first = fields.get("batches"), fields.get("first")
    end = "the others, who were apart from this device, have trained the model to its end: this device stops"
    if not batches or not isinstance(batches, int) or not isinstance(first, int):
        return end
    return f"{end}. What it did apart, {_batches(first, batches)}, is not in that model"


def _gives_way(fields: Fields) -> str | None:
    batches, first = fields.get("batches"), fields.get("first")
    if not isinstance(batches, int) or not isinstance(first, int):
        return None
    return f"goes on with the model of peers that were apart: {_batches(first, batches)}, as done here, are lost"


def _batches(first: int, num: int) -> str:
    return f"batch {first}" if num == 1 else f"batches {first}-{first + num - 1}"


_SENTENCES: dict[str, Callable[[Fields], str | None]] = {
    "job": lambda f: f"job {_text(f, 'name')} ({_text(f, 'job')}), mode {_text(f, 'mode')}",
    "job-from": lambda f: f"got the job from {_text(f, 'peer')}",
    "job-kept": lambda f: (
        f"nobody else tells a job: going on with the one that is kept here, {_text(f, 'name')} ({_text(f, 'job')}), "
        f"round {_text(f, 'round')}"
    ),
    "new-code": lambda f: (
        "the group has a new join code: going on under it (`p2ptrain group show` tells it)"
        + (f"; it could not be kept here ({_text(f, 'why_not_kept')})" if f.get("why_not_kept") else "")
    ),
    "asks-to-be-let-in": lambda f: (
        f"{_text(f, 'name')} ({_text(f, 'peer')}, at {_host(f)}) asks to be let in: if it is that device, run "
        f"`p2ptrain group approve {_text(f, 'peer')}`"
    ),
    "let-in": lambda f: (
        "this device is let in"
        + (f"; that could not be kept here ({_text(f, 'why_not_kept')})" if f.get("why_not_kept") else "")
    ),
    "new-code-passed-on": lambda f: f"told the device at {_host(f)}, which has an old join code, of the new one",
    "job-left": lambda f: (
        f"the others have another job ({_text(f, 'theirs')}): leaving {_text(f, 'ours')} for it; what was trained "
        "stays on disk"
    ),
    "other-job": lambda f: (
        f"{_text(f, 'peer')} is in this group with another job ({_text(f, 'theirs')}, ours is {_text(f, 'ours')}) and "
        "trains by itself: start both with the same job file, or one of them without --job"
    ),
    "stop-asked": lambda f: (
        f"{_who(f)} asks the whole group to stop: "
        + (
            "this device goes on, as it was started with --no-remote-stop"
            if f.get("answer") == "refuses"
            else "this device ends the round under way, the model is written, and it leaves. Start it again to go on"
        )
    ),
    "patience-over": lambda f: (
        f"the group ends its training after the round under way: in {_text(f, 'looks')} looks its whole model got no "
        f"more validation samples right (training.patience){_best(f)}"
    ),
    "ends-with-others": lambda f: (
        f"this device ends its training after the round under way, as {_text(f, 'names')} do: the group was asked to "
        f"stop, or its model got no better (training.patience){_best(f) if f.get('best') else ''}"
    ),
    "batches-dropped": lambda f: (
        f"{_text(f, 'batches')} batches after the round that the group stopped at are not in the model"
    ),
    "looked": lambda f: (
        f"the whole model, put together after round {_text(f, 'round')}, gets {percent(_number(f, 'accuracy'))} of "
        f"this device's {_number(f, 'samples'):,.0f} validation samples right ({_number(f, 'seconds'):.1f} s)"
    ),
    "look-given-up": lambda f: (
        f"the whole model after round {_text(f, 'round')} was not looked at here: {_text(f, 'why')}"
    ),
    "joined": lambda f: f"{_who(f)} is here",
    "left": lambda f: f"{_who(f)} left",
    "failed": lambda f: f"{_who(f)} is lost: no answer any more",
    "goes-back": _goes_back,
    "overtaken": _overtaken,
    "gives-way": _gives_way,
    "finished-apart": lambda f: (
        f"devices that were apart trained {_text(f, 'num')} models to the end: `p2ptrain harvest` takes that of "
        f"{_text(f, 'taken')}, not that of {_text(f, 'others')}"
    ),
    "goes-on": lambda f: (
        f"goes on: batch {_text(f, 'step')} is done, {_number(f, 'seconds'):.1f} s after the loss was seen"
    ),
    "goes-on-alone": lambda f: (
        f"{_text(f, 'here')} peers go on; of the {_text(f, 'of')} of the plan before, those here are no majority. "
        "When they meet the others again, whoever is further wins, and the others' batches are lost"
    ),
    "vote-refused": lambda f: _text(f, "why"),
    "vote-not-kept": lambda f: (
        "this peer has no vote on the next plan, as it can't keep one; the group may wait for it"
    ),
    "waits-for-peers": lambda f: f"waits for {_text(f, 'words')}",
    "metrics-failed": lambda f: (
        f"figures of this training are written down no longer ({_text(f, 'why')}); training goes on"
    ),
    "lines-left-out": lambda f: (
        f"{_text(f, 'lines')} more lines like the last of {_text(f, 'of')!r} were left out of the journal"
    ),
    "fetching-part": lambda f: f"getting the last copy of part {_text(f, 'part')} (round {_text(f, 'round')})",
    "head-fit-copy-not-had": lambda f: (
        f"of part {_text(f, 'part')} nobody hands out {_text(f, 'peer')}'s copy after round {_text(f, 'round')}, which "
        "somebody said to have; the last layer is fitted without it"
    ),
    "blocks-not-had": lambda f: (
        f"blocks that {_text(f, 'from') or 'somebody'} said to have could not be had from there; the group looks for "
        "others"
    ),
    "copies-not-had": lambda f: (
        f"of part {_text(f, 'part')} no copy could be had that is of use, though {_text(f, 'from')} said to have some; "
        "it is trained from the beginning"
    ),
    "fetching-blocks": lambda f: (
        f"getting blocks {_text(f, 'blocks')} after {_text(f, 'step')} {f.get('steps', 'batches')} from "
        f"{_text(f, 'from')}"
    ),
    "averaging": lambda f: (
        f"averaging {_text(f, 'updates')} peers' copies of the model after round {_text(f, 'round')} "
        f"({scaled(_number(f, 'bytes'), 'B')})"
    ),
    "round-dropped": lambda f: (
        f"{_text(f, 'batches')} batches of this device's round are done again: the plan that holds from now on goes on "
        f"from round {_text(f, 'round')}"
    ),
    "update-refused": lambda f: (
        f"the copies after round {_text(f, 'round')} can't be averaged: {_text(f, 'peer')}: {_text(f, 'detail')}"
    ),
    "drawn-in": lambda f: (
        f"the copy of {_who(f)} after round {_text(f, 'round')} is far from all others: "
        f"{100 * _number(f, 'counted'):.0f} % of its way from them counted"
    ),
    "kept-once": lambda f: (
        f"nobody but one peer has all of round {_text(f, 'round')}: should it be lost, the round is lost with it; are "
        "the other devices' disks full?"
    ),
    "no-room-for-piece": lambda f: (
        f"this device keeps {_text(f, 'pieces')} pieces of saved states, as many as it may, and has no room for one of "
        f"round {_text(f, 'round')}: other devices have to keep it"
    ),
    "untold-copies": lambda f: (
        f"{_text(f, 'copies')} of the snapshots that this device keeps have no room in what it tells of itself: the "
        "others do not know of them"
    ),
    "blamed": lambda f: (
        f"{_who(f)} sends what is of no use in round {_text(f, 'round')}: the group trains the round without it "
        f"({_text(f, 'detail')})"
    ),
    "helper-slow": lambda f: (
        f"{_who(f)}, which helps this device, is {_text(f, 'slower')} times as slow as planned: the group may plan anew"
    ),
    "update-not-saved": lambda f: (
        f"this device's copy after round {_text(f, 'round')} can't be saved, so it can't be averaged: make room"
    ),
    "average-not-saved": lambda f: (
        f"the average of round {_text(f, 'round')} can't be saved on this device: make room; another makes it"
    ),
    "stage-message-refused": lambda f: f"something unusable from {_text(f, 'peer')} was refused: {_text(f, 'detail')}",
    "plan-impossible": lambda f: f"no plan can be made: {_text(f, 'why')}",
    "link": lambda f: f"the link to {_text(f, 'name')} {link_rate(_number(f, 'mbit_s'))}",
    "samples": lambda f: f"of this device's samples: {clean(str(f.get('detail', '?')), 400)}",
    "remark": lambda f: clean(str(f.get("detail", "?")), 400),
    "training": _training,
    "gossip": lambda f: f"averaged with {_text(f, 'peer')} ({scaled(_number(f, 'bytes'), 'B')})",
    "gossip-ended": lambda f: f"averaging with {_text(f, 'peer')} ended early ({_text(f, 'outcome')})",
    "head-fit-started": lambda f: (
        "everyone is trained: the group "
        + ("looks at its model" if f.get("steps") == 1 else "fits the last layer again, together")
    ),
    "head-fit-lead": lambda f: f"the fit of the last layer is led by {_text(f, 'lead')} now",
    "head-fit-late": lambda f: f"the fit of the last layer goes on without a late peer ({_text(f, 'missing')})",
    "head-fit-abandoned": lambda f: "the fit of the last layer was given up: nobody leads it",
    "head-fit-no-gradient": lambda f: (
        f"the fit of the last layer goes on without {_text(f, 'peer')}: what it sends are no gradients of any samples"
    ),
    "head-fit-without": lambda f: f"nobody has a copy of parts {_text(f, 'parts')}: the last layer is fitted without",
    "head-fitted": lambda f: f"the last layer is fitted, on {_number(f, 'samples'):,.0f} samples of the whole group",
    "output-lost": lambda f: (
        f"what this peer prints reaches nobody ({_number(f, 'lines'):.0f} lines so far): its terminal or pipe is "
        "closed; training goes on"
    ),
    "trainer-hangs": lambda f: f"{_text(f, 'what')}: it hangs, and is ended",
    "trainer-failed": lambda f: f"the training process failed: {_text(f, 'detail')}",
    "payload-refused": lambda f: f"an unusable update of {_text(f, 'peer')} was refused: {_text(f, 'detail')}",
    "snapshot-refused": lambda f: (
        f"this device's blocks can't be made of what is saved: {_text(f, 'detail')}; other copies are tried, then an "
        f"older state ({clean(str(f.get('blobs', '?')), 200)})"
        if "blobs" in f
        else f"an unusable copy was refused: {_text(f, 'detail')}"
    ),
    "frame-refused": _frame_refused,
    "plan-refused": lambda f: f"a plan of {_text(f, 'peer')} was refused: it does not follow from what it is made of",
    "banned": lambda f: f"{_text(f, 'peer')} is shut out for a while: too many wrong messages ({_text(f, 'last')})",
    "other-version": lambda f: f"{_text(f, 'peer')} can't take part: {_versions(f)}",
    "refused-us": lambda f: f"{_text(f, 'peer')} refuses this peer: {_versions(f)}",
    "one-way": lambda f: (
        f"{_text(f, 'peer')} reaches this peer, but not the other way round (tried {_text(f, 'addresses')}): a "
        "firewall on that device? `p2ptrain doctor` there tells more"
    ),
    "identity-used-twice": lambda f: (
        f"another process at {_text(f, 'address')} uses this peer's identity: give each peer its own --state"
    ),
    "large-packets-lost": lambda f: (
        f"small packets reach {_host(f)}, large ones get lost on the way: make the MTU of this device's interface "
        "smaller (1280 passes nearly everywhere), or mend the VPN or switch in between"
    ),
    "slow-way": lambda f: (
        f"the way to {_host(f)} is slow, or one of the two devices busy: to connect and send 8 kB took "
        f"{_number(f, 'took_s'):.1f} s; a peer "
        "that does not answer within a few seconds counts as lost"
    ),
    "finding-trouble": lambda f: f"looking for others: {_text(f, 'source')} {_text(f, 'why')}",
    "finding-works": lambda f: f"looking for others: {_text(f, 'source')} works again",
    "addresses": lambda f: f"this device's addresses are now {_hosts(f)}",
    "socket-refused": lambda f: (
        f"this device has no socket left for a link to {_text(f, 'address')} ({_text(f, 'why')}); it goes on with the "
        "links it has and tries again: close programs that have many files open, or raise the limit of open files "
        "(`ulimit -n`) and start again"
    ),
    "storage-full": lambda f: f"this device's disk is full or its quota used up: make room ({_text(f, 'why')})",
    "storage-broken": lambda f: f"this device's disk refuses to be written to: check it ({_text(f, 'why')})",
    "storage-no-files": lambda f: f"too many files are open on this device: nothing is saved now ({_text(f, 'why')})",
    "storage-works": lambda f: "the disk can be written to again",
    "no-locks": lambda f: (
        f"{_text(f, 'where')} is on a disk without locks: make sure that no other peer uses this state directory"
    ),
    "storage-damaged": lambda f: "something in the state directory was damaged and moved aside",
    "logger-failed": lambda f: (
        f"logger {_text(f, 'logger')}: {_text(f, 'why')}; it is told no more, the figures go on in metrics.jsonl"
    ),
    "logger-behind": lambda f: (
        f"logger {_text(f, 'logger')} is too slow, or hangs: {_text(f, 'why')} figures did not reach it so far; "
        "all are in metrics.jsonl"
    ),
    "model-written": lambda f: (
        f"the {_text(f, 'kind')} is in {_text(f, 'path')}" + (f" ({_text(f, 'why_not')})" if f.get("why_not") else "")
    ),
    "model-kept": lambda f: f"the model that was written earlier stays in {_text(f, 'path')} ({_text(f, 'why')})",
    "model-not-written": lambda f: (
        f"the model could not be written here ({_text(f, 'why')}); get it with `p2ptrain harvest`, on any device, "
        "while the others are here"
    ),
    "model-looked-at": lambda f: (
        f"the finished model gets {percent(_number(f, 'accuracy'))} of this device's {_number(f, 'samples'):,.0f} "
        "validation samples right"
    ),
    "model-not-looked-at": lambda f: (
        f"how good the model is was not looked at: this device's validation samples can't be read ({_text(f, 'why')})"
    ),
    "best-not-kept": lambda f: (
        f"the best state is not kept here beside the finished model ({_text(f, 'why')}); while the others are here, "
        "get it with `p2ptrain harvest --best`"
    ),
    "model-awaited": lambda f: "the model is still being written: waiting for it",
    "handover-incomplete": lambda f: "nobody confirmed the last copy in time; it stays on this device's disk",
}
