"""What is written for sclite reads back, and an independent alignment of it counts as jiwer does."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from parp_cli.errors import DataError
from parp_cli.scoring.metrics import align, pooled, utterance_errors, word_errors
from parp_cli.scoring.outputs import check_trn, to_trn, trn_id
from parp_cli.scoring.results import Recognition
from tests.scoring.oracle import fewest_edits, read_trn
from tests.scoring.worlds import garbled

SCLITE = next((name for name in (["sclite"], ["sctk", "sclite"]) if shutil.which(name[0])), None)
"""As it is named alone, and in Debian's package."""


def written(folder: Path, recognitions: list[Recognition]) -> tuple[Path, Path]:
    paths = folder / "ref.trn", folder / "hyp.trn"
    for path, text in zip(paths, to_trn(recognitions), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def test_an_independent_alignment_counts_the_same(tmp_path: Path) -> None:
    recognitions = garbled(0, 60)
    texts = [read_trn(path) for path in written(tmp_path, recognitions)]
    assert list(texts[0]) == list(texts[1]) == [this.id for this in recognitions]
    references, hypotheses = ([*text.values()] for text in texts)
    total = 0
    for reference, hypothesis, alignment in zip(
        references, hypotheses, align(references, hypotheses, "words"), strict=True
    ):
        errors = utterance_errors(alignment)
        optimal = fewest_edits(reference.split(), hypothesis.split())
        assert (errors.substitutions, errors.deletions, errors.insertions) in optimal
        total += sum(next(iter(optimal)))
    whole = word_errors([this.reference for this in recognitions], [this.hypothesis for this in recognitions])
    assert (total, sum(len(text.split()) for text in references)) == (whole.errors, whole.tokens)
    assert total > 50


@pytest.mark.skipif(not SCLITE, reason="NIST's sclite is not installed")
def test_sclite_counts_the_same(tmp_path: Path) -> None:
    recognitions = garbled(1, 200)
    reference, hypothesis = written(tmp_path, recognitions)
    assert SCLITE is not None
    command = [*SCLITE, "-r", reference, "-h", hypothesis, "-i", "spu_id", "-s", "-o", "rsum", "stdout"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (summary,) = re.findall(r"\| Sum .*", told)
    sentences, words, right, substituted, deleted, inserted, errors, _ = map(int, re.findall(r"\d+", summary))
    counted = pooled(
        map(utterance_errors, align([r.reference for r in recognitions], [r.hypothesis for r in recognitions], "words"))
    )
    assert (sentences, words) == (200, counted.tokens)
    # It may prefer an alignment with one error more for the sake of a hit; on so much alike lines it hardly does.
    assert counted.errors <= errors <= counted.errors * 1.01
    assert deleted - inserted == counted.deletions - counted.insertions
    assert right + substituted + deleted == words
    assert len(re.findall(r"^ *\| \d ", told, re.MULTILINE)) == 8, "speakers"


def test_ids_have_their_speaker_in_front_and_no_spaces(tmp_path: Path) -> None:
    def named(id_: str, speaker: str | None) -> Recognition:
        return Recognition(id=id_, reference="A (B)", hypothesis="", speaker=speaker)

    assert trn_id(named("84-121123-0001", "84")) == "84-121123-0001"
    assert trn_id(named("0001", "x-y")) == "x_y-0001"
    assert trn_id(named("0001", None)) == trn_id(named("0001", "")) == "0001"
    assert trn_id(named("s1", "s1")) == "s1-s1"
    odd = named("clip (2) 100%.wav", None)
    assert not re.search(r"[\s()]", trn_id(odd))
    reference, hypothesis = written(tmp_path, [odd])
    assert read_trn(reference) == {odd.id: "A (B)"}
    assert read_trn(hypothesis) == {odd.id: ""}


def test_speakers_with_a_hyphen_are_not_one_to_sclite() -> None:
    ids = [
        trn_id(Recognition(id=f"spk-{speaker}-{number:03}", reference="A", hypothesis="A", speaker=f"spk-{speaker}"))
        for speaker in range(3)
        for number in range(2)
    ]
    assert ids == ["spk_0-000", "spk_0-001", "spk_1-000", "spk_1-001", "spk_2-000", "spk_2-001"]
    assert len({id_.partition("-")[0] for id_ in ids}) == 3, "sclite's speaker ends at the first hyphen"


def test_words_that_sclite_would_read_otherwise_are_refused() -> None:
    recognitions = [
        Recognition(id="1", reference="{ A / B }", hypothesis="A"),
        Recognition(id="2", reference="FINE", hypothesis="A@B"),
        Recognition(id="3", reference="FINE", hypothesis="@ ;; \\"),
        Recognition(id="2", reference="FINE", hypothesis="FINE"),
        Recognition(id="4", reference="FINE", hypothesis="FINE", speaker="a-b"),
        Recognition(id="5", reference="FINE", hypothesis="FINE", speaker="a_b"),
    ]
    for refuse in (check_trn, to_trn):
        with pytest.raises(DataError, match="cannot be written") as caught:
            refuse(recognitions)
        assert caught.value.details == (
            "2 comes 2 times",
            "1: { }",
            "3: @ ;; \\",
            "speakers a-b and a_b would both be a_b",
        )
    unrecognized = [replace(this, hypothesis="") for this in recognitions]
    with pytest.raises(DataError) as caught:
        check_trn(unrecognized)
    assert caught.value.details[:2] == ("2 comes 2 times", "1: { }"), "of references and ids all is known beforehand"
    check_trn(garbled(0, 20))
