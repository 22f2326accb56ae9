"""The demo's table: what each peer did, and the assembled model beside central training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2ptrain.words import part_of, scaled, word


def demo_table(result: Any, out: Path) -> str:
    """Text of an experiment's ``Result``."""
    lines = _works(result) if result.works else _parts(result)
    found = {"mdns": "mDNS", "address": "address (no multicast here)"}[result.found_by]
    how = ", head re-fitted by the group" if result.head_fitted else ""
    lines.append("")
    lines.append(
        f"assembled from {len(result.works or result.peers)} peers{how}:  {100 * result.assembled_accuracy:5.1f} %"
    )
    if result.central_accuracy is not None:
        lines.append(
            f"central training, {result.central_epochs:g} epochs:     {100 * result.central_accuracy:5.1f} %"
            f"   (difference {100 * (result.assembled_accuracy - result.central_accuracy):+.1f} points,"
            f" on {result.test_samples} test samples)"
        )
    if result.work_flops:
        lines += _work(result)
    lines.append("")
    lines.append(
        f"found each other by {found} after {result.formed_s:.1f} s, trained after {result.trained_s:.0f} s, "
        f"harvested in {result.harvested_s:.1f} s"
    )
    lines.append(f"{out / 'global.safetensors'}: try  p2ptrain evaluate {word(out / 'global.safetensors')} --data ...")
    return "\n".join(lines)


def _work(result: Any) -> list[str]:
    """What all of it cost, beside central training."""
    known = [peer for peer in result.peers if peer.work_flops]
    central = f"central training's {scaled(result.central_flops, 'FLOP')}"
    share = part_of(result.work_flops, result.central_flops)
    lines = [f"work, all included: together {scaled(result.work_flops, 'FLOP')}, {share} {central}"]
    if known:
        most = max(peer.work_flops for peer in known)
        lines.append(f"the most of a peer: {scaled(most, 'FLOP')}, {part_of(most, result.central_flops)} that")
    return lines


def _works(result: Any) -> list[str]:
    """Of a mode in which peers have runs of blocks of one model."""
    rows = [("peer", "trains", "of all work", "samples", "sent")]
    for work in result.works:
        sent = f"{work.bytes_sent / 1e6:.2f} MB"
        rows.append((work.name, work.trains, f"{100 * work.share:.1f} %", str(work.samples), sent))
    return _ruled(rows)


def _parts(result: Any) -> list[str]:
    """Of a mode in which each peer's part is a model of its own."""
    rows = [("peer", "classes", "width", "FLOPs/sample", "of full", "samples", "work", "sent", "own classes")]
    for peer in result.peers:
        rows.append(
            (
                peer.name,
                " ".join(peer.classes) if len(peer.classes) <= 8 else f"{len(peer.classes)} classes",
                f"{peer.width:.2f}",
                _count(peer.flops_per_sample),
                f"{100 * peer.flops_share:.1f} %",
                str(peer.samples),
                f"{100 * peer.work_share:.1f} %" if peer.work_flops else "-",
                f"{peer.bytes_sent / 1e6:.2f} MB",
                f"{100 * peer.own_class_accuracy:.1f} %",
            )
        )
    rows.append(
        ("full model", "", "1.00", _count(result.full_flops_per_sample), "100 %", str(result.train_samples), "", "", "")
    )
    return _ruled(rows)


def _ruled(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def _count(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
