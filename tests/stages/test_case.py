"""The case of transcripts is that of the model's letters."""

from dataclasses import replace
from pathlib import Path

from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.transcribe import transcribe
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import ctc_task
from tests.tiny import TEXTS, World


def test_a_model_with_small_letters_is_as_good_as_with_capitals(world: World, trained: Path, tmp_path: Path) -> None:
    content = checkpoint.read(trained)
    assert content.metadata.vocabulary is not None
    small = replace(
        content.metadata,
        task=ctc_task([symbol.lower() for symbol in content.metadata.vocabulary], content.metadata.labels),
    )
    lower = tmp_path / "lower.safetensors"
    checkpoint.write(lower, replace(content, metadata=small))
    capitals = evaluate(trained, out=tmp_path / "capitals.jsonl")
    found = evaluate(lower, out=tmp_path / "small.jsonl", options=Options(against=(tmp_path / "capitals.jsonl",)))
    words = capitals.as_it_is.errors("words")
    assert words is not None
    assert words.errors < words.tokens
    assert found.as_it_is.errors("words") == words
    assert found.as_it_is.errors("characters") == capitals.as_it_is.errors("characters")
    assert not found.notes
    files = [str(world.folder / f"test-{number}.wav") for number in range(len(TEXTS["test"]))]
    texts = [[made.text for made in transcribe(path, files).transcriptions] for path in (trained, lower)]
    assert texts[1] == [text.lower() for text in texts[0]] != texts[0]
