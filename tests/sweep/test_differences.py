"""Paired differences over utterances and seeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from parp_cli.scoring.intervals import paired_difference
from parp_cli.sweep.cells import Outcome
from parp_cli.sweep.differences import differences
from parp_cli.sweep.report import difference_rows, panels

SPEAKERS = [f"s{number}" for number in range(8)]


def cell(run: Path, method: str, sparsity: float, seed: int, wrong: list[int], **others: Any) -> Outcome:
    """Each speaker has one utterance of five words, of which so many are wrong."""
    folder = run / f"{method}-{sparsity}-{seed}"
    folder.mkdir()
    lines = [
        {
            "id": f"u-{speaker}",
            "reference": "A B C D E",
            "hypothesis": " ".join(["X"] * count + list("ABCDE")[count:]),
            "speaker": speaker,
            "split": "test",
        }
        for speaker, count in zip(SPEAKERS, wrong, strict=True)
    ]
    (folder / "eval-test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Outcome(
        cell=folder.name,
        key=folder.name,
        method=method,
        sparsity_target=sparsity,
        seed=seed,
        split="test",
        checkpoint=f"{folder.name}/finetune.safetensors",
        values={"pruning.method": method, "pruning.sparsity": sparsity, "seed": seed},
        **({"wer": sum(wrong) / 40} | others),
    )


def test_errors_are_summed_over_seeds_and_paired_by_speaker(tmp_path: Path) -> None:
    dense = {0: [1, 2, 3, 1, 2, 3, 1, 2], 1: [2, 2, 2, 2, 2, 2, 2, 3]}
    parp = {0: [0, 1, 3, 1, 1, 3, 0, 2], 1: [1, 2, 2, 1, 2, 2, 2, 2], 2: [5] * 8}
    outcomes = [cell(tmp_path, "dense", 0.0, seed, wrong) for seed, wrong in dense.items()]
    outcomes += [cell(tmp_path, "parp", 0.5, seed, wrong) for seed, wrong in parp.items()]
    outcomes += [cell(tmp_path, "mpi", 0.5, 0, [3] * 8), cell(tmp_path, "mpi", 0.7, 0, [4] * 8)]
    found = {(pair.method, pair.sparsity, pair.other): pair for pair in differences(outcomes, tmp_path)}
    assert set(found) == {
        ("parp", 0.5, "dense"),
        ("mpi", 0.5, "dense"),
        ("mpi", 0.5, "parp"),
        ("mpi", 0.7, "dense"),
    }
    ours, theirs = ([sum(two) for two in zip(each[0], each[1], strict=True)] for each in (parp, dense))
    expected = paired_difference(ours, theirs, [10] * 8, SPEAKERS)
    pair = found["parp", 0.5, "dense"]
    assert (pair.seeds, pair.difference) == (2, expected), "the seed that dense lacks is left out"
    assert expected is not None
    assert expected.value == (sum(ours) - sum(theirs)) / 80
    assert found["mpi", 0.5, "parp"].seeds == 1
    (panel,) = panels(outcomes)
    columns, rows = difference_rows(panel, tmp_path)
    assert columns[0] == "WER, paired"
    assert len(rows) == len(found)
    assert rows[0][:4] == ["parp", "50%", "dense", "2"]
    assert float(rows[0][4]) == pytest.approx(100 * expected.value, abs=0.01)


def test_scores_of_texts_are_paired_over_texts_and_seeds(tmp_path: Path) -> None:
    def judged(method: str, sparsity: float, seed: int, wrong: set[int]) -> Outcome:
        found = cell(tmp_path, method, sparsity, seed, [0] * 8, wer=None, score=1 - len(wrong) / 40, metric="accuracy")
        names = ["a", "b"]
        lines = [
            {"id": str(i), "split": "test", "reference": names[i % 2], "hypothesis": names[(i + (i in wrong)) % 2]}
            for i in range(40)
        ]
        folder = tmp_path / found.cell
        (folder / "eval-test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "eval-test.json").write_text(json.dumps({"names": names}))
        return found

    outcomes = [judged("dense", 0.0, seed, set(range(12))) for seed in range(2)]
    outcomes += [judged("parp", 0.5, seed, set(range(2 + seed))) for seed in range(2)]
    (pair,) = differences(outcomes, tmp_path)
    assert (pair.method, pair.other, pair.seeds) == ("parp", "dense", 2)
    assert pair.difference is not None
    assert pair.difference.value == pytest.approx((24 - 5) / 80), "above 0: better"
    assert pair.difference.interval is not None
    assert pair.difference.interval.low > 0
    assert pair.difference.p_value < 0.01


def test_what_has_no_result_is_left_out(tmp_path: Path) -> None:
    assert not differences([cell(tmp_path, "mpi", 0.5, 0, [1] * 8, wer=None)], tmp_path)
