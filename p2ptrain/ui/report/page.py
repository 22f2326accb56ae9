"""The report of a job as one HTML page: nothing is fetched for it, and nothing runs in it.

Invariant: text that is not ours is escaped, and what is not known is not shown as a number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from statistics import median

from p2ptrain.runtime.node.journal import Value
from p2ptrain.ui.report import charts
from p2ptrain.ui.report.gathering import Gathered, PeerFigures, local_time, number
from p2ptrain.version import __version__
from p2ptrain.words import counted, duration, percent, scaled

PHASES = {
    "waiting": "#8C8C8C",
    "training": "#0072B2",
    "trained": "#56B4E9",
    "fitting": "#A05080",
    "done": "#007A5A",
    "failed": "#C0392B",
}
MARK = "<!doctype html>\n<!-- a report of p2ptrain -->"
"""How the file begins, so that a later report knows it."""
CSV_FIELDS = (
    *("time", "name", "peer", "phase", "epoch", "part", "round", "step", "samples", "loss", "accuracy"),
    *("model_accuracy", "model_samples", "samples_per_s", "bytes_sent", "slowdown"),
)
STYLE = """
:root{color-scheme:light dark;--text:#1c1c1e;--back:#fff;--soft:#666;--rule:#d8d8dc}
@media (prefers-color-scheme:dark){:root{--text:#ececf0;--back:#16161a;--soft:#a0a0a8;--rule:#3a3a40}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:60rem;margin:2rem auto;
padding:0 1rem}h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin:2rem 0 .4rem}
.soft{color:var(--soft)}.big{font-size:1.25rem}svg.chart{width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}svg text.on{fill:#fff}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--soft);fill:none}.line{fill:none;stroke-width:2}
.mark{fill:var(--text)}.legend{list-style:none;padding:0;margin:0;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
svg.key{width:28px;height:8px}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--rule);white-space:nowrap}
.n{text-align:right}td.said{white-space:normal}
"""


def page(found: Gathered) -> str:
    """The whole file."""
    job, names = found.job, [each.name for each in found.peers]
    title = f"{job.get('name') or 'job'} ({job.get('job')})"
    charted = [
        _chart(found, "Loss", "loss", "time", names),
        _chart(found, "Loss over samples", "loss", "samples", names),
        _chart(found, "Accuracy on own validation samples", "accuracy", "time", names),
        _chart(found, "Samples a second", "samples_per_s", "time", names),
        _chart(found, "Sent in all", "bytes_sent", "time", names),
    ]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_what(found))}</p>',
        *_result(found),
        "<h2>Peers</h2>",
        _table(found.peers),
        *_phases(found),
        *charted,
        *_events(found),
        *(f'<p class="soft">{escape(note)}</p>' for note in found.notes),
        f'<p class="soft">Written by p2ptrain {__version__}.</p>',
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    return (
        f'{MARK}\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body>\n{chr(10).join(part for part in body if part)}\n</body></html>\n"
    )


def _what(found: Gathered) -> str:
    job = found.job
    known = [
        f"mode {job['mode']}" if job.get("mode") else "",
        f"model {job['model']}" if job.get("model") else "",
        f"{job['classes']} classes" if job.get("classes") else "",
        f"{job['rounds']} rounds" if job.get("rounds") else "",
        "begun with a trained model" if job.get("init") else "",
    ]
    when = f"{local_time(found.begin)}, {duration(max(1, round(found.end - found.begin)))}"
    return ", ".join([*(each for each in known if each), f"{counted(len(found.peers), 'peer')}; {when}"])


def _result(found: Gathered) -> list[str]:
    """How good the model was found, by all together or else by each."""
    on_the_way = [line for line in found.looks if "model_loss" in line.fields]
    together = [line for line in found.looks if line.kind == "model" and line not in on_the_way]
    if together:
        last = together[-1].fields
        share, samples = number(last.get("model_accuracy")), number(last.get("model_samples"))
        return [
            f'<p class="big">The assembled model gets <b>{escape(percent(share))}</b> of the group\'s '
            f"{samples or 0:,.0f} validation samples right.</p>"
        ]
    told = {str(line.fields.get("peer")): line.fields for line in found.looks if line not in on_the_way}
    samples = sum(number(fields.get("model_samples")) or 0 for fields in told.values())
    if not samples and on_the_way:
        last = max(on_the_way, key=lambda line: (number(line.fields.get("round")) or 0, line.time)).fields
        share, samples = number(last.get("model_accuracy")), number(last.get("model_samples")) or 0
        when = f"Put together after round {number(last.get('round')) or 0:.0f}, while it was trained"
        return [
            f'<p class="big">{when}, the model got <b>{escape(percent(share))}</b> of {samples:,.0f} validation '
            "samples right.</p>"
        ]
    if not samples:
        return ['<p class="soft">How good the assembled model is was not looked at.</p>']
    right = sum(
        (number(each.get("model_accuracy")) or 0) * (number(each.get("model_samples")) or 0) for each in told.values()
    )
    return [
        f'<p class="big">The assembled model gets <b>{escape(percent(right / samples))}</b> of {samples:,.0f} '
        f"validation samples of {counted(len(told), 'device')} right.</p>"
    ]


def _table(peers: Sequence[PeerFigures]) -> str:
    titles = ("peer", "last", "part", "round", "step", "samples", "loss", "accuracy", "samples/s", "sent")
    rows = [f"<tr>{''.join(f'<th{_right(i)}>{title}</th>' for i, title in enumerate(titles))}</tr>"]
    for each in peers:
        rates = [rate for _, rate in each.series("samples_per_s")]
        cells = (
            each.name,
            str(each.last("phase") or ""),
            _text(each.last("part")) if each.last("part") != -1 else "",
            _text(each.last("round")),
            _text(each.last("step")),
            _text(each.last("samples")),
            _text(each.last("loss"), ".3f"),
            percent(number(each.last("accuracy"))) if each.last("accuracy") is not None else "",
            f"{median(rates):.0f}" if rates else "",
            scaled(number(each.last("bytes_sent")) or 0, "B"),
        )
        rows.append(f"<tr>{''.join(f'<td{_right(i)}>{escape(cell)}</td>' for i, cell in enumerate(cells))}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div><p class="soft">samples/s: the median.</p>'


def _right(column: int) -> str:
    return ' class="n"' if column > 1 else ""


def _phases(found: Gathered) -> list[str]:
    if found.end <= found.begin:
        return []
    chart = charts.bars(
        "what each peer did, over time",
        [(each.name, each.phases()) for each in found.peers],
        PHASES,
        begin=found.begin,
        end=found.end,
        x_words=_time_words,
        x_title="since the beginning",
    )
    return ["<h2>What each did</h2>", chart]


def _chart(found: Gathered, title: str, field: str, over: str, names: Sequence[str]) -> str:
    start = found.begin if over == "time" else 0.0
    trained = field != "bytes_sent"
    of_each = [each.series(field, over, trained=trained) for each in found.peers]
    series = {i: [(x - start, y) for x, y in points] for i, points in enumerate(of_each)}
    marks = [
        (line.time - start, accuracy)
        for line in (found.looks if field == "accuracy" else ())
        if line.kind == "model" and (accuracy := number(line.fields.get("model_accuracy"))) is not None
    ]
    svg = charts.lines(
        f"{title} of each peer",
        series,
        names,
        x_words=_time_words if over == "time" else lambda x: _amount(x, ""),
        y_words={"accuracy": percent, "bytes_sent": lambda y: _amount(y, "B")}.get(
            field, lambda y: f"{y:,.0f}" if y >= 100 else f"{y:.3g}"
        ),
        x_title="since the beginning" if over == "time" else "samples trained on",
        from_zero=field in ("samples_per_s", "bytes_sent"),
        marks=marks,
    )
    key = '<p class="soft">◆ the assembled model, on all validation samples</p>' if marks else ""
    return f"<h2>{escape(title)}</h2>{svg}{key}" if svg else ""


def _events(found: Gathered) -> list[str]:
    if not found.events:
        return []
    rows = "".join(
        f"<tr><td>{local_time(each.time)}</td><td>{escape(each.device)}</td>"
        f'<td class="said">{escape(each.words)}</td></tr>'
        for each in found.events
    )
    return [
        "<h2>What happened</h2>",
        f"<details open><summary>{counted(len(found.events), 'event')}</summary>",
        f'<div class="wide"><table>{rows}</table></div></details>',
    ]


def to_csv(found: Gathered) -> str:
    """A row a line of figures, oldest first; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for line in found.lines:
        known = {"time": f"{line.time:.3f}", **line.fields}
        writer.writerow([_safe_cell(known.get(field, "")) for field in CSV_FIELDS])
    return out.getvalue()


def _safe_cell(value: Value) -> Value:
    """A name that a spreadsheet would take for a formula is marked as text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _amount(value: float, unit: str) -> str:
    return scaled(value, unit) if value > 0 else "0"


def _time_words(seconds: float) -> str:
    return "0" if abs(seconds) < 1e-9 else f"{seconds:.4g} s" if seconds < 120 else duration(seconds)


def _text(value: Value, how: str = ",") -> str:
    known = number(value)
    return "" if known is None else format(known if "f" in how else int(known), how)
