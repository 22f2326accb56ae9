"""The page of figures and README's table are what the result files say, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load_figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("p2ptrain_figures", ROOT / "scripts" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


figures = load_figures()

from benchmarks.rows import FigureError, Remark, Row, Section  # noqa: E402  (found by what figures.py does)

PLACE = {"machine": {"cpu": "abacus", "cores": 2}, "versions": {"python": "3.11", "torch": "2.13"}}
BENCH = PLACE | {
    "command_line": ["/somewhere/scripts/bench.py", "wire", "--repeat", "3"],
    "load_average_before": 0.5,
    "tiny": False,
    "incomplete": "",
    "cases": [
        {"case": "plain, TCP", "figures": {"s": {"median": 1.0, "low": 1.0, "high": 1.0}}},
        {"case": "ours", "figures": {"s": {"median": 1234.5, "low": 1200.0, "high": 1300.0}}},
    ],
}
PEER = {"flops_share": 0.1, "bytes_sent": 2_400_000}
DEMO = {
    "assembled_accuracy": 0.981,
    "central_accuracy": 0.994,
    "epochs": 12.0,
    "model": "lenet",
    "peers": [PEER, {"flops_share": 0.132, "bytes_sent": 3_100_000}],
}


def written(folder: Path, **records: Any) -> Path:
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


def table(*rows: Any, num_columns: int = 4, **more: Any) -> Any:
    return Section("What comes out", "A table", rows, header=("title",) * num_columns, **more)


def page(folder: Path, *sections: Any) -> str:
    return str(figures.page(figures.records_of(folder), sections))


def test_the_pages_say_what_the_files_say() -> None:
    assert figures.main(["--check"]) == 0, "run scripts/figures.py"


def test_every_kept_file_is_on_the_page_and_its_command_can_be_typed() -> None:
    text = figures.PAGE.read_text(encoding="utf-8")
    for name, record in figures.records_of(figures.FOLDER).items():
        command = figures.command_of(record)
        assert f"`{name}`" in text and f"`{command}`" in text
        known = (
            "scripts/bench.py ",
            "python -m scripts.lab run scripts/lab/files/",
            "python -m scripts.lab.night",
            "p2ptrain demo",
        )
        assert command.startswith(known)


def test_figures_are_medians_with_their_spread(tmp_path: Path) -> None:
    row = Row("wire", "a thing", "{ours/s*0.001:.2f} ks", "{plain, TCP/s:.1f} s")
    text = page(written(tmp_path, wire=BENCH), table(row))
    assert "| a thing | 1.23 (1.20-1.30) ks | 1.0 s | `scripts/bench.py wire --repeat 3` |" in text
    assert "`wire`: abacus, 2 cores, load 0.5 before; Python 3.11, torch 2.13." in text


def test_a_difference_has_its_sign(tmp_path: Path) -> None:
    text = page(written(tmp_path, wire=BENCH), table(Row("wire", "a thing", "{ours/s*-0.001:+.2f}")))
    assert "| a thing | -1.23 (-1.20 to -1.30) |" in text


def test_a_row_without_a_file_is_left_out(tmp_path: Path) -> None:
    rows = [Row("wire", "here", "{ours/s:.0f}"), Row("other", "gone", "{ours/s:.0f}")]
    text = page(written(tmp_path, wire=BENCH), table(*rows), table(rows[1]))
    assert "| here |" in text and "gone" not in text and text.count("title | title |\n") == 1
    empty = page(tmp_path / "empty", table(*rows))
    assert "A table" not in empty and "gone" not in empty
    assert figures.small_table({}, [table(in_readme=rows)]) == ""


def test_remarks_stand_below_their_table_with_their_figures(tmp_path: Path) -> None:
    remarks = (Remark("wire", "Ours takes {ours/s:.0f} s."), Remark("other", "Theirs is gone."))
    text = page(written(tmp_path, wire=BENCH), table(Row("wire", "a thing", ""), remarks=remarks))
    assert text.index("| a thing |") < text.index("- Ours takes 1,234 (1,200-1,300) s.\n") and "Theirs" not in text


def test_readme_shows_the_rows_that_are_meant_for_it(tmp_path: Path) -> None:
    records = figures.records_of(written(tmp_path, wire=BENCH))
    sections = [table(in_readme=(Row("wire", "ours", "{ours/s:.0f} s", "plain: {plain, TCP/s:.0f} s"),)), table()]
    assert figures.small_table(records, sections).endswith("| ours | 1,234 (1,200-1,300) s | plain: 1 s |\n")


@pytest.mark.parametrize("place", ["{theirs/s:.1f}", "{ours/ms:.1f}"])
def test_a_figure_that_the_file_does_not_have_is_an_error(tmp_path: Path, place: str) -> None:
    with pytest.raises(FigureError, match=r"wire\.json: no figure"):
        page(written(tmp_path, wire=BENCH), table(Row("wire", "a thing", place)))


def test_a_file_of_which_no_row_is_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="no row"):
        page(written(tmp_path, wire=BENCH, stray=BENCH), table(Row("wire", "", "{ours/s:.0f}")))


def test_a_demo_is_wrapped_with_its_command_and_machine(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(json.dumps(DEMO))
    folder = tmp_path / "figures"
    with pytest.raises(FigureError, match="--command"):
        figures.add("demo", result, folder, "")
    record = json.loads(figures.add("demo", result, folder, "p2ptrain demo").read_text())
    assert record["result"] == DEMO and record["machine"]["cores"] >= 1 and "torch" in record["versions"]
    accuracies = ("{assembled_accuracy*100:.1f} %", "{central_accuracy*100:.1f} %")
    costs = ("{flops_share*100:.1f} %", "{bytes_sent*0.000001:.1f} MB")
    text = page(folder, table(Row("demo", "digits, {epochs:g} epochs of {model:s}", *accuracies, costs), num_columns=6))
    assert "| digits, 12 epochs of lenet | 98.1 % | 99.4 % | 10.0-13.2 % | 2.4-3.1 MB | `p2ptrain demo` |" in text
    with pytest.raises(FigureError, match=r"demo\.json: no 'loss'"):
        page(folder, table(Row("demo", "digits", "{loss:.1f}"), num_columns=3))


def test_only_results_that_count_are_added(tmp_path: Path) -> None:
    folder = written(tmp_path, tiny=BENCH | {"tiny": True}, short=BENCH | {"incomplete": "too slow"}, other={"a": 1})
    for name in ("tiny", "short", "other"):
        with pytest.raises(FigureError):
            figures.add("x", folder / f"{name}.json", tmp_path / "figures", "")
    place = BENCH | {"command_line": ["/somewhere/scripts/bench.py", "wire", "--out", "/else/where", "--repeat", "3"]}
    good = figures.add("wire", written(tmp_path, good=place) / "good.json", tmp_path / "figures", "")
    assert json.loads(good.read_text()) == BENCH | {"command_line": ["scripts/bench.py", "wire", "--repeat", "3"]}


def test_only_what_is_between_the_markers_is_rewritten() -> None:
    text = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n"
    new = figures.rewritten(text, "| new |")
    assert new == f"before\n{figures.BEGIN}\n\n| new |\n\n{figures.END}\nafter\n"
    assert figures.rewritten(new, "| new |") == new
    with pytest.raises(FigureError, match="README"):
        figures.rewritten("no markers", "| new |")
