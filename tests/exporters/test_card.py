"""Model cards: what they tell, and what they do not."""

from pathlib import Path

import pytest
import yaml

from parp_cli.errors import CheckpointError
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from parp_cli.stages.reprune import reprune
from parp_cli.storage import checkpoint
from tests.tiny import World


@pytest.fixture
def own(world: World, tmp_path: Path) -> Path:
    """A checkpoint in a run folder of its own."""
    return finetune(world.recipe(), run=tmp_path / "run").path


def test_a_card_tells_how_it_was_made_and_how_well_it_does(own: Path, tmp_path: Path) -> None:
    found = evaluate(own, out=own.parent / "eval-test.jsonl").as_it_is
    result = export(own, to="hf", out=tmp_path / "hf")
    assert result.card == tmp_path / "hf" / "README.md"
    text = result.card.read_text(encoding="utf-8")
    errors = found.errors("words")
    assert errors is not None
    assert f"| WER | {errors.rate:.2%} |" in text
    assert f"| finetune | finetune.safetensors | `{checkpoint.file_hash(own)}` |" in text
    metadata = checkpoint.read_metadata(own)
    assert all(parent.sha256 in text for parent in metadata.parents)
    assert metadata.sparsity is not None
    assert f"{metadata.sparsity.pruned:,} weights of {metadata.sparsity.total:,} are pruned" in text
    assert "| method | parp: " in text
    assert "| manifest | manifest.jsonl |" in text
    assert str(tmp_path) not in text, "folders of this machine are nobody's business"
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["pipeline_tag"] == "automatic-speech-recognition"
    (metric,) = header["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("wer", round(100 * errors.rate, 2))


def test_results_of_another_checkpoint_or_under_a_mask_are_not_its_own(own: Path, tmp_path: Path) -> None:
    other = reprune(own, sparsity=0.9, out=tmp_path / "other.safetensors").path
    evaluate(own, out=own.parent / "eval-test.jsonl", options=Options(masks=(other,)))
    evaluate(other, out=tmp_path / "run" / "other.jsonl")
    text = (export(own, to="hf", out=tmp_path / "hf").card or tmp_path).read_text(encoding="utf-8")
    assert text.count("| WER |") == 1


def test_without_results(masked: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    copy = tmp_path / "encoder" / "mask.safetensors"
    copy.write_bytes(masked.read_bytes())
    text = (export(copy, to="hf", out=tmp_path / "hf").card or tmp_path).read_text(encoding="utf-8")
    assert "None were measured" in text
    assert "AutoModel.from_pretrained" in text
    file = export(trained, to="torchaudio", out=tmp_path / "model.pt")
    assert file.card == tmp_path / "model.md"
    assert "torch.load" in file.card.read_text(encoding="utf-8")


def test_a_card_of_ones_own_stays(trained: Path, tmp_path: Path) -> None:
    first = export(trained, to="hf", out=tmp_path / "hf").card
    assert first is not None
    assert export(trained, to="hf", out=tmp_path / "hf").card == first, "its own is written again"
    first.write_text("mine", encoding="utf-8")
    assert export(trained, to="hf", out=tmp_path / "hf").card is None
    assert first.read_text(encoding="utf-8") == "mine"


def test_small_models_are_refused_with_the_way_out(world: World, tmp_path: Path) -> None:
    masked = mask(str(world.encoder), sparsity=0.5, out=tmp_path / "mask.safetensors", pattern="structures").path
    small = export(masked, to="small", out=tmp_path / "small.safetensors").path
    for to in ("hf", "torchaudio"):
        with pytest.raises(CheckpointError, match="layers of sizes") as raised:
            export(small, to=to, out=tmp_path / to)
        assert "--to onnx" in (raised.value.hint or "")
        assert not (tmp_path / to).exists()
        assert not (tmp_path / f"{to}.md").exists()
