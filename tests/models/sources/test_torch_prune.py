"""What torch.nn.utils.prune pruned becomes weights and a mask, whatever project and wrapper saved it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import prune

from parp_cli.errors import CheckpointError, MaskError, ParpError
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.stages.mask import combine, mask
from parp_cli.storage import checkpoint
from tests.models.small import OF_TORCHAUDIO, SMALL, randomise
from tests.models.sources.test_fairseq import as_dictionary, fairseq_weights, model_settings

transformers = pytest.importorskip("transformers", reason="transformers has the names of one project")


def masked(state: Mapping[str, Tensor], names: list[str], amount: float = 0.4) -> dict[str, Tensor]:
    """A state dict as torch.nn.utils.prune makes it, with some weights pruned; what is pruned is not zero in it."""
    found = dict(state)
    for name in names:
        module = torch.nn.Module()
        module.register_parameter("weight", torch.nn.Parameter(found.pop(name).clone()))
        prune.l1_unstructured(module, "weight", amount)
        found |= {f"{name}_orig": module.weight_orig.detach(), f"{name}_mask": module.weight_mask}
    return found


def expected(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    kept = state[f"{name}_mask"].bool()
    return state[f"{name}_orig"] * kept, kept


def folder(architecture: Architecture, path: Path) -> dict[str, Tensor]:
    """A folder of transformers, pruned in k_proj, with its state dict."""
    from parp_cli.models.sources import huggingface

    config = transformers.AutoConfig.for_model(**huggingface.config_of(architecture))
    model = randomise(transformers.AutoModel.from_config(config))
    model.save_pretrained(path)
    state = masked(model.state_dict(), [name for name in model.state_dict() if "attention.k_proj" in name])
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    return state


@pytest.mark.parametrize("name", [name for name in SMALL if "wavlm" not in name])
def test_a_folder_of_transformers(name: str, tmp_path: Path) -> None:
    state = folder(SMALL[name], tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert len(encoder.masks) == 2 * SMALL[name].layers
    for ours, kept in encoder.masks.items():
        weight, theirs = expected(state, ours.replace("encoder.transformer.", "encoder."))
        assert torch.equal(kept, theirs)
        assert torch.equal(encoder.weights[ours], weight)


def test_projections_that_are_packed_are_kept_whole_where_they_have_no_mask(tmp_path: Path) -> None:
    architecture = SMALL["wavlm-base"]
    state = folder(architecture, tmp_path)
    encoder = load_encoder(str(tmp_path))
    name = "encoder.transformer.layers.0.attention.attention.in_proj_weight"
    q, k, v = encoder.masks[name].chunk(3)
    assert q.all()
    assert v.all()
    assert torch.equal(k, state["encoder.layers.0.attention.k_proj.weight_mask"].bool())
    assert (encoder.weights[name].chunk(3)[1][~k] == 0).all()


@pytest.mark.parametrize("prefix", ["", "w2v_encoder.w2v_model.", "module.w2v_encoder.w2v_model."])
@pytest.mark.parametrize("name", [name for name in OF_TORCHAUDIO if "wavlm" not in name])
def test_a_checkpoint_of_fairseq(name: str, prefix: str, tmp_path: Path) -> None:
    _, theirs = fairseq_weights(SMALL[name])
    theirs = {key: tensor for key, tensor in theirs.items() if not key.startswith("quant")}
    state = masked(theirs, [key for key in theirs if "self_attn.v_proj" in key])
    content = as_dictionary(model_settings(SMALL[name]), SMALL[name].normalize_waveform)
    torch.save({"model": {prefix + key: value for key, value in state.items()}, **content}, tmp_path / "file.pt")
    encoder = load_encoder(str(tmp_path / "file.pt"))
    assert len(encoder.masks) == 2 * SMALL[name].layers
    for ours, kept in encoder.masks.items():
        weight, mask_of = expected(state, ours.replace("transformer.", "").replace("attention", "self_attn"))
        assert torch.equal(kept, mask_of)
        assert torch.equal(encoder.weights[ours], weight)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "compiled layers": lambda state: {re_layers(name): tensor for name, tensor in state.items()},
    "both": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    "Lightning": lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()}, "epoch": 3},
    "Lightning, parallel": lambda state: {"state_dict": {f"model.module.{n}": t for n, t in state.items()}},
}


def re_layers(name: str) -> str:
    return name.replace("layers.0.", "layers.0._orig_mod.")


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers(wrapper: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["mini"]
    state = randomise(build(architecture)).state_dict()
    pruned = masked(state, [name for name in state if "intermediate_dense.weight" in name])
    torch.save(WRAPPED[wrapper](pruned), tmp_path / "file.pt")
    encoder = load_encoder(str(tmp_path / "file.pt"))
    assert encoder.architecture == architecture
    assert len(encoder.masks) == architecture.layers
    for name, kept in encoder.masks.items():
        weight, theirs = expected(pruned, name)
        assert torch.equal(kept, theirs)
        assert torch.equal(encoder.weights[name], weight)


def test_a_state_dict_with_the_names_of_transformers_is_recognised(tmp_path: Path) -> None:
    from parp_cli.models.sources.huggingface import names_of

    state = randomise(build(ARCHITECTURES["mini"])).state_dict()
    theirs = {f"model.wav2vec2.{name}": tensor for name, tensor in names_of(state, ARCHITECTURES["mini"]).items()}
    theirs = masked(theirs, [name for name in theirs if name.endswith("q_proj.weight")])
    torch.save({"state_dict": theirs}, tmp_path / "last.ckpt")
    encoder = load_encoder(str(tmp_path / "last.ckpt"))
    assert encoder.architecture == ARCHITECTURES["mini"]
    assert len(encoder.masks) == ARCHITECTURES["mini"].layers


@pytest.fixture
def pruned(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path / "pruned"
    return path, folder(SMALL["wav2vec2-group-norm"], path)


@pytest.mark.parametrize("form", ["pt", "safetensors", "names of weights", "parallel", "fairseq"])
def test_masks_alone_are_laid_over_a_model(form: str, pruned: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, state = pruned
    masks = {name: tensor for name, tensor in state.items() if name.endswith("_mask")}
    file = tmp_path / f"masks.{'safetensors' if form == 'safetensors' else 'pt'}"
    renaming: dict[str, Callable[[str], str]] = {
        "names of weights": lambda name: name.removesuffix("_mask"),
        "parallel": lambda name: f"module.wav2vec2.{name}",
        "fairseq": lambda name: f"w2v_encoder.w2v_model.{name.replace('attention', 'self_attn')}",
    }
    masks = {renaming.get(form, str)(name): tensor for name, tensor in masks.items()}
    save_file(masks, file) if form == "safetensors" else torch.save(masks, file)
    found = combine(file, apply=str(path), out=tmp_path / "laid.safetensors")
    content = checkpoint.read(found.path)
    assert content.metadata.recipe is not None
    assert content.metadata.recipe["scope"] == "*.k_proj.*"
    assert {parent.file for parent in content.metadata.parents} == {file.name}
    for name, kept in content.masks.items():
        theirs = state[f"{name.replace('encoder.transformer.', 'encoder.')}_mask"].bool()
        assert torch.equal(kept, theirs)
    from_folder = checkpoint.read_masks(combine(path, out=tmp_path / "own.safetensors").path)
    assert from_folder.keys() == content.masks.keys()
    assert all(torch.equal(from_folder[name], kept) for name, kept in content.masks.items())


def test_a_new_mask_says_that_it_replaces_one(pruned: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, _ = pruned
    result = mask(str(path), sparsity=0.01, out=tmp_path / "new.safetensors")
    assert result.replaced == pytest.approx(0.4, abs=0.01)
    assert result.kept_zeros > 0


def test_masks_that_fit_nothing(pruned: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, state = pruned
    masks = {name: tensor for name, tensor in state.items() if name.endswith("_mask")}
    file = tmp_path / "masks.pt"

    def refused(content: dict[str, Tensor], words: str, kind: type[ParpError] = MaskError, **options: Any) -> None:
        torch.save(content, file)
        with pytest.raises(kind, match=words):
            combine(file, out=tmp_path / "out.safetensors", **options)
        assert not (tmp_path / "out.safetensors").exists()

    refused(masks, "masks alone")
    refused({name: tensor[:-1] for name, tensor in masks.items()}, "do not fit", apply=str(path))
    refused({name.replace("layers.1", "layers.9"): t for name, t in masks.items()}, "no such weight", apply=str(path))
    refused({name: tensor * 0.5 for name, tensor in masks.items()}, "more than zeros and ones", apply=str(path))
    refused({"x.weight_mask": torch.ones(2)}, "none of torchaudio's names", CheckpointError, apply=str(path))
    torch.save(masks, file)
    with pytest.raises(CheckpointError, match=r"masks alone[\s\S]*--apply"):
        load_encoder(str(file))
