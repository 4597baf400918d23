"""What made-up results say of the paper's claims."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from parp_cli.sweep.cells import Outcome
from parp_cli.sweep.claims import FINDINGS, FREEZE, Finding, draw_findings, paragraph
from tests.sweep.test_differences import cell

BETTER, ALIKE, WORSE = [1] * 8, [2, 3, 2, 3, 2, 3, 2, 3], [4] * 8
LEVEL = [3, 2, 3, 2, 3, 2, 3, 2]
COSTS = {"parp": 600, "dense": 600, "mpi": 600, "rp": 600, "omp": 1200, "imp": 900}


def results(run: Path, wrong: dict[tuple[str, float], list[int]], **others: Any) -> list[Outcome]:
    """Of one seed, by method and sparsity."""
    return [
        cell(run, method, sparsity, 0, errors, updates=COSTS[method], audio_seconds=60.0, wall_seconds=60.0, **others)
        for (method, sparsity), errors in wrong.items()
    ]


def verdicts(findings: Sequence[Finding], claim: str) -> dict[str, str]:
    return {each.place: each.verdict for each in findings if each.claim.startswith(claim)}


def test_parp_against_dense_and_the_methods_that_search(tmp_path: Path) -> None:
    wrong = {("dense", 0.0): LEVEL, ("parp", 0.3): BETTER, ("parp", 0.5): ALIKE, ("parp", 0.7): WORSE}
    wrong |= {("omp", 0.3): WORSE, ("omp", 0.5): LEVEL, ("imp", 0.7): BETTER}
    found = FINDINGS["main"](results(tmp_path, wrong), tmp_path)
    told = {"30%": "agrees", "50%": "cannot be told", "70%": "does not agree"}
    assert verdicts(found, "PARP is at or below the dense network") == told
    assert verdicts(found, "PARP is at or below OMP") == {"30%": "agrees", "50%": "cannot be told"}
    assert verdicts(found, "PARP is at or below IMP") == {"70%": "does not agree"}
    lines = paragraph(found).splitlines()
    assert lines[0].startswith("PARP is at or below the dense network: agrees in 1 of 3 (30%: -30.00 points (")
    assert "), does not agree in 1 of 3 (70%: +30.00 points (" in lines[0]
    assert "600 updates against 1,200" in next(line for line in lines if "below OMP" in line)


@pytest.mark.parametrize(
    ("mpi", "parp", "verdict"),
    [
        ((LEVEL, WORSE), (LEVEL, ALIKE), "agrees"),
        ((LEVEL, ALIKE), (WORSE, WORSE), "does not agree"),
        ((LEVEL, ALIKE), (LEVEL, BETTER), "cannot be told"),
        ((LEVEL, WORSE), (LEVEL, WORSE), "cannot be told"),
    ],
)
def test_which_methods_degrade_first(tmp_path: Path, mpi: Any, parp: Any, verdict: str) -> None:
    wrong = {("dense", 0.0): LEVEL}
    wrong |= {(m, s): errors[n] for m, errors in (("mpi", mpi), ("parp", parp)) for n, s in enumerate((0.3, 0.7))}
    found = FINDINGS["main"](results(tmp_path, wrong), tmp_path)
    assert verdicts(found, "MPI and RP degrade first") == {"": verdict}


def test_the_freeze_that_only_baselines_have(tmp_path: Path) -> None:
    outcomes = []
    for frozen, dense in ((0, BETTER), (500, WORSE)):
        folder = tmp_path / str(frozen)
        folder.mkdir()
        (one,) = results(folder, {("dense", 0.0): dense})
        path = str(Path(str(frozen)) / str(one.checkpoint))
        outcomes.append(Outcome(**{**vars(one), "values": {FREEZE: frozen}, "checkpoint": path}))
    outcomes += results(tmp_path, {("parp", 0.5): ALIKE})
    found = FINDINGS["main"](outcomes, tmp_path)
    assert verdicts(found, "Baselines are better where their encoder trains") == {"dense": "agrees"}
    by_setting = {each.setting: each.verdict for each in found if "dense network" in each.claim}
    published = "as published, baselines frozen for 500 updates"
    assert by_setting == {"equal terms": "does not agree", published: "agrees"}


def test_costs(tmp_path: Path) -> None:
    wrong = {("dense", 0.0): LEVEL, ("parp", 0.5): WORSE, ("omp", 0.5): BETTER, ("imp", 0.5): BETTER}
    found = FINDINGS["cost"](results(tmp_path, wrong), tmp_path)
    assert verdicts(found, "PARP costs a fraction of OMP") == {"50%": "agrees"}
    assert verdicts(found, "PARP is the cheapest way") == {"": "does not agree"}
    assert "fewest updates to 50.0%: imp at 50% in 900" in paragraph(found)
    nothing = FINDINGS["cost"](results(tmp_path / "..", {}), tmp_path)
    assert nothing == []


def test_settings_are_changed_alone(tmp_path: Path) -> None:
    outcomes = []
    for number, (interval, errors) in enumerate(((10, ALIKE), (50, WORSE), (1, BETTER))):
        one = cell(tmp_path, "parp", 0.5 + number / 1000, 0, errors)
        values = {"pruning.method": "parp", "pruning.interval": interval, "training.updates": 600}
        outcomes.append(Outcome(**{**vars(one), "sparsity_target": 0.5, "values": values}))
    found = FINDINGS["ablations"](outcomes, tmp_path)
    claim = "PARP is best with pruning.interval 10, as in the recipe"
    assert verdicts(found, claim) == {"against 50": "agrees", "against 1": "does not agree"}
    assert {each.claim for each in found} == {claim}


def test_many_places_are_summed_up_and_drawn(tmp_path: Path) -> None:
    wrong = {("dense", 0.0): LEVEL} | {("parp", number / 10): BETTER for number in range(1, 8)}
    found = FINDINGS["main"](results(tmp_path, wrong), tmp_path)
    assert "; 3 more, -30.0 to -30.0 points)" in paragraph(found)
    png, svg = draw_findings(found, tmp_path / "main")
    assert (png.name, svg.name) == ("main-claims.png", "main-claims.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert draw_findings([each for each in found if each.difference is None], tmp_path / "none") == ()


def test_too_few_speakers_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sweep.test_differences.SPEAKERS", ["s1", "s2"])
    found = FINDINGS["main"](results(tmp_path, {("dense", 0.0): [5, 5], ("parp", 0.5): [0, 0]}), tmp_path)
    assert verdicts(found, "PARP is at or below the dense network") == {"50%": "cannot be told"}
    assert "too few speakers to tell" in paragraph(found)
