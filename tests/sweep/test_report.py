import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parp_cli.sweep import report
from parp_cli.sweep.cells import Outcome
from parp_cli.sweep.report import cost_rows, draw, error_rows, markdown, panels, titles, write_results


def outcome(method: str, sparsity: float, seed: int, wer: float | None, split: str = "test", **others: Any) -> Outcome:
    """Of a grid of methods, sparsities, seeds, and whatever `others` are that make a difference."""
    failed = others.pop("failed", None)
    values = {"pruning.method": method, "seed": seed, **others} | ({"pruning.sparsity": sparsity} if sparsity else {})
    known = {} if wer is None else {"updates": 10, "audio_seconds": 1800.0 * (1 + seed), "wall_seconds": 90.0}
    return Outcome(
        cell=f"{method} {sparsity} {seed}",
        key="k",
        method=method,
        sparsity_target=sparsity,
        seed=seed,
        split=split,
        wer=wer,
        values=values,
        failed=failed,
        **known,
    )


OUTCOMES = [
    outcome("dense", 0.0, 0, 0.40),
    outcome("dense", 0.0, 1, 0.44),
    outcome("parp", 0.5, 0, 0.41),
    outcome("parp", 0.5, 1, 0.47),
    outcome("parp", 0.5, 2, 0.50),
    outcome("parp", 0.9, 0, 0.8),
    outcome("parp", 0.9, 1, None, failed="the training loss is nan"),
    outcome("mpi", 0.9, 0, None),
]


def test_means_and_spreads() -> None:
    (panel,) = panels(OUTCOMES)
    mean = panel.means["parp", 0.5]
    errors = [0.41, 0.47, 0.50]
    assert (mean.error, mean.spread, mean.seeds) == (sum(errors) / 3, statistics.stdev(errors), 3)
    assert panel.means["parp", 0.9].spread is None
    assert set(panel.means) == {("dense", 0.0), ("parp", 0.5), ("parp", 0.9)}
    columns, rows = error_rows(panel)
    assert columns == ["WER, test", "0%", "50%", "90%"]
    assert rows == [
        ["dense", "42.0% ± 2.8 (2)", "–", "–"],
        ["parp", "–", "46.0% ± 4.6 (3)", "80.0% (1)"],
        ["mpi", "–", "–", "–"],
    ]
    _, rows = cost_rows(panel)
    assert rows[:2] == [["dense", "0%", "2", "10", "0.75", "1.5"], ["parp", "50%", "3", "10", "1.00", "1.5"]]


def test_a_panel_for_each_split_and_each_other_value() -> None:
    found = panels(
        [
            outcome("dense", 0.0, 0, 0.1),
            outcome("parp", 0.5, 0, 0.2, **{"pruning.interval": 10}),
            outcome("parp", 0.5, 0, 0.3, **{"pruning.interval": 20}),
            outcome("dense", 0.0, 0, 0.4, split="other"),
            outcome("parp", 0.5, 0, 0.5, split="other", **{"pruning.interval": 10}),
        ]
    )
    assert [panel.title for panel in found] == [
        "test, pruning.interval 10",
        "test, pruning.interval 20",
        "other, pruning.interval 10",
    ]
    errors = [[panel.means[place].error for place in (("dense", 0.0), ("parp", 0.5))] for panel in found]
    assert errors == [[0.1, 0.2], [0.1, 0.3], [0.4, 0.5]]


def test_null_is_a_value_with_a_panel_of_its_own() -> None:
    intervals = [(None, 0.1), (3, 0.5)]
    found = panels(
        [outcome("parp", 0.5, seed, wer, **{"pruning.interval": i}) for i, wer in intervals for seed in (0, 1)]
    )
    assert [panel.title for panel in found] == ["test, pruning.interval null", "test, pruning.interval 3"]
    assert [(panel.means["parp", 0.5].error, panel.means["parp", 0.5].seeds) for panel in found] == [(0.1, 2), (0.5, 2)]


def test_dense_alone_has_a_panel_too() -> None:
    rates: dict[str, Any] = {"training.learning_rate": 1e-3}
    (panel,) = panels([outcome("dense", 0.0, 0, 0.1, **rates)])
    assert panel.means["dense", 0.0].error == 0.1
    parp = outcome("parp", 0.5, 0, 0.2, **{"training.learning_rate": 2e-3, "pruning.interval": 10})
    found = panels([outcome("dense", 0.0, 0, 0.1, **rates), parp])
    assert [set(panel.means) for panel in found] == [{("dense", 0.0)}, {("parp", 0.5)}]


def test_phones() -> None:
    one = outcome("parp", 0.5, 0, None)
    (panel,) = panels([Outcome(**{**vars(one), "per": 0.25})])
    assert (panel.metric, panel.means["parp", 0.5].error) == ("PER", 0.25)


def test_a_table_comes_with_its_first_result(tmp_path: Path) -> None:
    """What is still to run does not tell yet whether words or phones are counted."""
    spanish = outcome("dense", 0.0, 0, None, **{"data.language": ["es"]})
    dutch = outcome("dense", 0.0, 0, None, **{"data.language": ["nl"]})
    assert "|" not in markdown([spanish, dutch], tmp_path)
    lines = markdown([replace(spanish, per=0.2), dutch], tmp_path).splitlines()
    assert [line for line in lines if "data.language" in line] == ['| PER, test, data.language ["es"] | 0% |']


def test_files(tmp_path: Path) -> None:
    lines, tables = write_results(tmp_path / "my.sweep", OUTCOMES)
    assert (lines.name, tables.name) == ("my.sweep.jsonl", "my.sweep.md")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(rows) == len(OUTCOMES) - 1  # what was not run is no result
    assert [row["wer"] for row in rows] == [0.40, 0.44, 0.41, 0.47, 0.50, 0.8, None]
    assert rows[-1]["failed"] == "the training loss is nan"
    assert rows[2]["values"] == {"pruning.method": "parp", "pruning.sparsity": 0.5, "seed": 0}
    text = tables.read_text()
    assert text == markdown(OUTCOMES, tmp_path)
    assert "| WER, test | 0% | 50% | 90% |\n| --- | ---: | ---: | ---: |\n| dense | 42.0% ± 2.8 (2) |" in text
    assert text.endswith("Failed:\n\n- parp 0.9 1, test: the training loss is nan\n")


def test_figure(tmp_path: Path) -> None:
    both = [*panels(OUTCOMES), *panels([outcome("parp", 0.5, 0, 0.3, split="other")])]
    paths = draw(both, tmp_path / "results")
    assert [path.name for path in paths] == ["results.png", "results.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw(both, tmp_path / "results")] == first
    assert draw(both[1:], tmp_path / "fewer")[1].read_bytes() != first[1]


def test_panels_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error axis for all, one colour per method, the dense level in each, titles of what differs."""
    drawn: list[Any] = []
    monkeypatch.setattr(report, "save_figures", lambda figure, stem: drawn.append(figure))
    rate = {"training.learning_rate": 1e-3, "a.key": "x" * 30, "another.key": "y" * 30}
    rows = [outcome("dense", 0.0, 0, 0.1, **rate)]
    rows += [outcome("mpi", 0.5, 0, 0.2, **rate, **{"pruning.interval": 10})]
    rows += [
        outcome("parp", s, 0, e, **rate, **{"pruning.interval": i}) for i, s, e in ((10, 0.5, 0.2), (20, 0.9, 0.8))
    ]
    found = panels(rows)
    assert titles(found) == ["pruning.interval 10", "pruning.interval 20"]
    assert titles(found[:1]) == ["test"]
    draw(found, tmp_path / "results")
    first, second = drawn[0].axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[1] > 80
    colours = [dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) for axes in (first, second)]
    assert list(colours[0]) == ["dense", "mpi", "parp"]
    assert list(colours[1]) == ["dense", "parp"]
    assert colours[0]["parp"].lines[0].get_color() == colours[1]["parp"].lines[0].get_color()
    other = [outcome("parp", 0.5, 0, 0.2, **rate, **{"pruning.interval": i}, b=i * "z") for i in (40, 50)]
    draw(panels(other), tmp_path / "results")
    for axes in drawn[-1].axes:
        assert max(map(len, axes.get_title().splitlines())) <= 48
        assert "learning_rate" not in axes.get_title()


@pytest.mark.parametrize("outcomes", [[], [outcome("parp", 0.5, 0, None)]])
def test_without_results_there_is_no_figure(tmp_path: Path, outcomes: list[Outcome]) -> None:
    assert draw(panels(outcomes), tmp_path / "results") == ()
    assert not list(tmp_path.iterdir())
