"""Figures: what they show, that they are files of their kind, and the same bytes twice."""

import builtins
import re
from pathlib import Path
from typing import Any

import pytest

from parp_cli.errors import UsageError
from parp_cli.pruning.overlap import Overlap, Pair
from parp_cli.pruning.plots import Change, changes, check_plot, overlap_heatmap, repruning_figure
from parp_cli.pruning.pruner import Repruning

pytest.importorskip("matplotlib", reason="figures need the extra plot")


def pair(first: str, second: str, kept_both: int) -> Pair:
    part = Overlap(total=100, kept_first=50, kept_second=50, kept_both=kept_both, kept_both_by_chance=25)
    cells = {("0", "fc1"): part, ("0", "fc2"): part, ("1", "fc2"): part}  # one cell has no weights
    return Pair(
        first=first,
        second=second,
        overall=part,
        by_layer={"0": part, "1": part},
        by_kind={"fc1": part, "fc2": part},
        by_layer_and_kind=cells,
    )


PAIRS = [pair("mpi", "parp", 40), pair("mpi", "rp", 25), pair("parp", "rp", 24)]


def reprunings(*, layers: bool, sparsities: tuple[float, ...]) -> list[Repruning]:
    return [
        Repruning(
            update=10 * n + n * n,
            sparsity=sparsity,
            revived=n,
            dropped=2 * n,
            layers={"0": (n, n), "front-end": (0, n)} if layers else {},
        )
        for n, sparsity in enumerate(sparsities, start=1)
    ]


def texts(path: Path) -> list[str]:
    """Every text of an SVG: matplotlib draws letters as shapes, and keeps the text in a comment."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_a_pair(tmp_path: Path) -> None:
    overlap_heatmap(tmp_path / "a.svg", PAIRS[:1])
    found = texts(tmp_path / "a.svg")
    assert {"mpi – parp", "IoU 66.7 %, by chance 33.3 %", "fc1", "fc2", "layer"} <= {
        line for text in found for line in text.splitlines()
    }
    assert found.count("67") == 3  # a number in each cell that has weights
    assert not any("all pairs" in text for text in found)


def test_several_pairs_have_a_panel_of_all(tmp_path: Path) -> None:
    overlap_heatmap(tmp_path / "a.svg", PAIRS)
    found = texts(tmp_path / "a.svg")
    assert "all pairs: IoU in % (by chance)" in found
    assert [text.splitlines()[0] for text in found if " – " in text] == ["mpi – parp", "mpi – rp", "parp – rp"]


@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize("sparsities", [(0.5, 0.5, 0.5), (0.1, 0.2, 0.5)])
def test_reprunings(tmp_path: Path, layers: bool, sparsities: tuple[float, ...]) -> None:
    repruning_figure(tmp_path / "a.svg", reprunings(layers=layers, sparsities=sparsities), "a run")
    found = texts(tmp_path / "a.svg")
    assert {"a run", "update", "revived", "dropped"} <= set(found)
    assert ("front-end" in found) == layers
    assert ("sparsity (%)" in found) == (len(set(sparsities)) > 1)
    assert (found.count("dropped") == 2) == layers  # of which there are more


def drawn(path: Path, *, revived: list[int], dropped: list[int]) -> list[str]:
    records = [
        Repruning(update=1000 * n, sparsity=0.5, revived=up, dropped=down, layers={"7": (up, down)})
        for n, (up, down) in enumerate(zip(revived, dropped, strict=True), start=1)
    ]
    repruning_figure(path, records, "a run")
    return texts(path)


def test_reprunings_without_what_is_always_zero(tmp_path: Path) -> None:
    found = drawn(tmp_path / "a.svg", revived=[0, 0, 0], dropped=[2000, 4000, 6000])
    assert "revived" not in found
    assert found.count("dropped") == 2  # the line and its layers
    assert {"6,000", "2,000", "7"} <= set(found)
    found = drawn(tmp_path / "b.svg", revived=[0, 0], dropped=[0, 0])
    assert "7" not in found  # of nothing there are no layers to see
    assert not any("." in text for text in found)


def test_reprunings_that_swap(tmp_path: Path) -> None:
    found = drawn(tmp_path / "a.svg", revived=[3, 2], dropped=[3, 2])
    assert found.count("swapped") == 2
    assert not {"revived", "dropped"} & set(found)


def test_updates_are_whole(tmp_path: Path) -> None:
    records = [Repruning(update=n, sparsity=0.5, revived=1, dropped=1) for n in (1, 2)]
    repruning_figure(tmp_path / "a.svg", records, "a run")
    assert not any("." in text for text in texts(tmp_path / "a.svg"))


@pytest.mark.parametrize("layers", [True, False])
def test_a_single_repruning(tmp_path: Path, layers: bool) -> None:
    repruning_figure(tmp_path / "a.svg", reprunings(layers=layers, sparsities=(0.5,)), "a run")
    found = texts(tmp_path / "a.svg")
    assert {"revived: 1", "dropped: 2", "weights at update 11"} <= set(found)
    assert ("front-end" in found, "all" in found) == (layers, not layers)


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("deep/A.SVG", b"<?xml")])
def test_the_same_bytes_twice(tmp_path: Path, name: str, start: bytes) -> None:
    made = []
    for folder in ("one", "two"):
        path = tmp_path / folder / name
        overlap_heatmap(path, PAIRS)
        made.append(path.read_bytes())
    assert made[0] == made[1]
    assert made[0].startswith(start)


@pytest.mark.parametrize("name", ["a.jpeg", "a", "png"])
def test_other_formats(name: str) -> None:
    with pytest.raises(UsageError, match="the name decides the format") as caught:
        check_plot(Path(name))
    assert caught.value.hint == "end it in .png or .svg"


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="figures need matplotlib") as caught:
        repruning_figure(tmp_path / "a.png", reprunings(layers=True, sparsities=(0.5,)), "a run")
    assert caught.value.hint == "pip install 'parp-cli[plot]'"
    assert not list(tmp_path.iterdir())


def repruning(**layers: tuple[int, int]) -> Repruning:
    revived, dropped = (sum(counts[which] for counts in layers.values()) for which in (0, 1))
    return Repruning(update=1, sparsity=0.5, revived=revived, dropped=dropped, layers=layers)


def test_layers_that_differ_are_not_swaps() -> None:
    """Although over all layers as many were revived as dropped, which is so whenever the sparsity stays."""
    found = changes([repruning(a=(1, 2), b=(5, 4)), repruning(a=(3, 3), b=(0, 0))])
    assert found == (
        Change(name="revived", overall=(6, 3), by_layer={"a": (1, 3), "b": (5, 0)}),
        Change(name="dropped", overall=(6, 3), by_layer={"a": (2, 3), "b": (4, 0)}),
    )


def test_layers_that_swap() -> None:
    assert changes([repruning(a=(1, 1)), repruning(a=(2, 2), b=(3, 3))]) == (
        Change(name="swapped", overall=(1, 5), by_layer={"a": (1, 2), "b": (0, 3)}),
    )


def test_only_one_of_the_two() -> None:
    assert [change.name for change in changes([repruning(a=(0, 2)), repruning(a=(0, 0))])] == ["dropped"]
    assert [change.name for change in changes([repruning(a=(2, 0)), repruning(a=(0, 0))])] == ["revived"]


def test_nothing_at_all() -> None:
    assert changes([repruning(a=(0, 0))]) == (Change(name="swapped", overall=(0,), by_layer={"a": (0,)}),)


def test_records_without_layers() -> None:
    found = changes([Repruning(update=1, sparsity=0.5, revived=3, dropped=4)])
    assert found == (
        Change(name="revived", overall=(3,), by_layer={}),
        Change(name="dropped", overall=(4,), by_layer={}),
    )
