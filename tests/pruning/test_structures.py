"""Heads and units are kept or pruned whole, by the mean magnitude of their weights."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.errors import ParpError, UsageError
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.prunable import Structure
from parp_cli.pruning.masks import count_all, count_pruned
from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.patterns import STRUCTURES, Pattern
from parp_cli.pruning.pruner import Pruner
from parp_cli.pruning.structures import group_sizes, group_sums, rows_of
from tests.models.small import SMALL, randomise

ARCHITECTURES = ["hubert-base", "wavlm-large"]


def weights_of(architecture: Architecture, scope: str = "transformer", *, biases: bool = True) -> dict[str, Tensor]:
    model = randomise(build(architecture), seed=3)
    return {name: w.detach() for name, w in model.prunable(scope, biases=biases).items()}


def groups(weights: dict[str, Tensor], heads: int, units: int) -> Iterator[tuple[str, int, int, list[Tensor]]]:
    """Kind, layer, number, and entries of every head and unit, spelled out for every family."""
    for layer in range(3):
        block = f"encoder.transformer.layers.{layer}"
        for number in range(heads):
            own = []
            size = 32 // heads
            rows = slice(number * size, (number + 1) * size)
            for name, weight in weights.items():
                if name.startswith(f"{block}.attention") and "in_proj" in name:
                    own += [third[rows] for third in weight.chunk(3)]
                elif name.startswith(f"{block}.attention") and "out_proj" not in name:
                    own.append(weight[rows])
                elif name.startswith(f"{block}.attention") and name.endswith("weight"):
                    own.append(weight[:, rows])
            yield "heads", layer, number, own
        for number in range(units):
            dense = f"{block}.feed_forward"
            own = [weights[f"{dense}.intermediate_dense.weight"][number]]
            own += [weights[f"{dense}.output_dense.weight"][:, number]]
            if f"{dense}.intermediate_dense.bias" in weights:
                own.append(weights[f"{dense}.intermediate_dense.bias"][number])
            yield "units", layer, number, own


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", [kind for kind in STRUCTURES if kind != "channels"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_groups_of_the_smallest_mean_magnitude_are_pruned(
    name: str, kind: str, sparsity: float, biases: bool
) -> None:
    pattern, scoped = Pattern.parse(kind), weights_of(SMALL[name], biases=biases)
    structures = SMALL[name].structures_of(scoped)
    weights = pattern.among(scoped, where="the test", structures=structures)
    masks = pattern.masks(weights, sparsity, {}, structures=structures)
    assert list(masks) == list(weights)
    assert set(scoped) - set(weights) == {
        key
        for key in scoped
        if key.endswith(("out_proj.bias", "output_dense.bias"))
        or (kind == "heads" and "feed_forward" in key)
        or (kind == "units" and "attention" in key)
    }
    magnitudes, kept = [], []
    for (what, *_, entries), (*_, own) in zip(groups(scoped, 4, 48), groups(_whole(masks, scoped), 4, 48), strict=True):
        if kind in ("structures", what):
            flat, flags = (torch.cat([part.flatten() for part in parts]) for parts in (entries, own))
            assert flags.all() == flags.any(), "whole"
            magnitudes.append((float(flat.double().abs().mean()), len(flat)))
            kept.append(bool(flags.all()))
    ranked = sorted(range(len(kept)), key=lambda index: magnitudes[index][0])
    target = round(sparsity * sum(size for _, size in magnitudes))
    counts = [sum(magnitudes[index][1] for index in ranked[:number]) for number in range(len(kept) + 1)]
    nearest = min(range(len(counts)), key=lambda number: abs(counts[number] - target))
    assert {index for index, flag in enumerate(kept) if not flag} == set(ranked[:nearest])
    assert (count_pruned(masks), count_all(masks)) == (counts[nearest], counts[-1])


def _whole(masks: dict[str, Tensor], scoped: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: masks.get(key, torch.ones_like(weight, dtype=torch.bool)) for key, weight in scoped.items()}


def test_of_equal_groups_the_first_are_pruned() -> None:
    weights = {key: torch.ones_like(weight) for key, weight in weights_of(SMALL["hubert-base"]).items()}
    structures = SMALL["hubert-base"].structures_of(weights)
    pattern = Pattern.parse("units")
    masks = pattern.masks(
        pattern.among(weights, where="the test", structures=structures), 0.5, {}, structures=structures
    )
    rows = torch.cat([mask for name, mask in masks.items() if name.endswith("intermediate_dense.bias")])
    assert rows.tolist() == [False] * 72 + [True] * 72


@pytest.mark.parametrize("scope", ["*.conv_layers.0.*", "*.layers.0.attention.q_proj.*"])
def test_a_scope_without_whole_structures_is_refused(scope: str) -> None:
    weights = weights_of(SMALL["hubert-base"], scope)
    structures = SMALL["hubert-base"].structures_of(weights)
    assert not structures
    with pytest.raises(UsageError, match="holds no whole heads, units or channels"):
        Pattern.parse("structures").among(weights, where="the test", structures=structures)
    with pytest.raises(UsageError, match="cannot be pruned by the pattern structures"):
        Pattern.parse("structures").masks(weights, 0.5, {}, structures=structures)


def test_a_part_of_the_layers() -> None:
    weights = weights_of(SMALL["wavlm-base"], "*.layers.[12].*")
    structures = SMALL["wavlm-base"].structures_of(weights)
    assert [(one.kind, one.layer, one.count) for one in structures if isinstance(one, Structure)] == [
        ("heads", 1, 4),
        ("units", 1, 48),
        ("heads", 2, 4),
        ("units", 2, 48),
    ]


def test_nan_is_refused() -> None:
    weights = weights_of(SMALL["hubert-base"])
    structures = SMALL["hubert-base"].structures_of(weights)
    pattern = Pattern.parse("heads")
    among: Any = pattern.among(weights, where="the test", structures=structures)
    name = list(among)[3]
    among[name][0] = torch.nan
    with pytest.raises(ParpError, match=rf"{name} holds NaN"):
        pattern.masks(among, 0.5, {}, structures=structures)


def test_rows_are_structures_too() -> None:
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 2, 2), "a.bias": torch.tensor([1.0, -2.0, 3.0])}
    rows = rows_of(tensors)
    assert [row.count for row in rows] == [3]
    assert group_sizes(tensors, rows) == {"a.weight": 5}
    assert group_sums(tensors, rows)["a.weight"].tolist() == [7.0, 20.0, 41.0]
    assert group_sums(tensors, rows, magnitudes=True)["a.weight"].tolist() == [7.0, 24.0, 41.0]
    assert group_sums({"a.bias": tensors["a.bias"]}, rows)["a.weight"].tolist() == [1.0, -2.0, 3.0]


@pytest.mark.parametrize("kind", ["heads", "units"])
def test_what_is_pruned_can_come_back_until_the_end(kind: str) -> None:
    """With zeros on both sides of a unit no gradient would reach it: what leads into it stays while it may return."""
    architecture = SMALL["hubert-base"]
    model = randomise(build(architecture, vocabulary_size=5))
    structures = architecture.structures_of(model.prunable())
    pattern = Pattern.parse(kind)
    weights: Any = pattern.among(model.prunable(), where="the test", structures=structures)
    settings = Settings(sparsity=0.5, schedule=Schedule(interval=2, updates=4), pattern=pattern, structures=structures)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    method = spec_of("parp").build(settings)
    pruner = Pruner(weights, method.settings.keep_largest(before, 0.5), method=method)
    pruner.start()
    outward = "out_proj.weight" if kind == "heads" else "output_dense.weight"
    for name, mask in pruner.masks.items():
        assert not mask.all()
        expected = before[name] * mask if name.endswith(outward) else before[name]
        assert torch.equal(weights[name], expected)
    with pruner.pruned_view():
        assert all(not weights[name][~mask].any() for name, mask in pruner.masks.items()), "as it would be shipped"
    model(torch.randn(1, 4_000))[0].square().sum().backward()
    for name, mask in pruner.masks.items():
        if name.endswith(outward):
            assert (weights[name].grad[~mask] != 0).all()
    for update in range(1, 5):
        pruner.after_step(update)
    assert all(not weights[name][~mask].any() for name, mask in pruner.masks.items()), "nothing comes back any more"


def channels(architecture: Architecture) -> tuple[dict[str, Tensor], list[Structure]]:
    """Weights of the front end, with norms, and the channels in them."""
    model = randomise(build(architecture), seed=3)
    weights = {name: w.detach() for name, w in model.prunable("front-end", norms=True).items()}
    return weights, architecture.structures_of(weights)


def of_channel(weights: dict[str, Tensor], layer: int, number: int) -> list[Tensor]:
    """All entries of a channel, spelled out; the next layer's (out, kernel) among them."""
    block = f"feature_extractor.conv_layers.{layer}"
    own = [weights[f"{block}.conv.weight"][number]]
    own += [
        weights[f"{block}.{n}"][number]
        for n in ("conv.bias", "layer_norm.weight", "layer_norm.bias")
        if f"{block}.{n}" in weights
    ]
    if layer < 2:
        return [*own, weights[f"feature_extractor.conv_layers.{layer + 1}.conv.weight"][:, number]]
    projection = "encoder.feature_projection"
    norm = [weights[f"{projection}.layer_norm.{part}"][number] for part in ("weight", "bias")]
    return [*own, *norm, weights[f"{projection}.projection.weight"][:, number]]


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "wav2vec2-layer-norm", "wavlm-large"])
def test_channels_of_the_smallest_mean_magnitude_are_pruned(name: str, sparsity: float) -> None:
    scoped, structures = channels(SMALL[name])
    assert [(one.kind, one.layer, one.count) for one in structures] == [("channels", layer, 16) for layer in range(3)]
    pattern = Pattern.parse("channels")
    weights = pattern.among(scoped, where="the test", structures=structures)
    assert set(scoped) - set(weights) == {"encoder.feature_projection.projection.bias"}
    masks = pattern.masks(weights, sparsity, {}, structures=structures)
    means, flags = {}, {}
    for layer in range(3):
        for number in range(16):
            entries = of_channel(weights, layer, number)[0]
            means[layer, number] = float(entries.double().abs().mean())
            flags[layer, number] = bool(torch.cat([p.flatten() for p in of_channel(masks, layer, number)]).any())
    # Each layer keeps its largest; the others go in order, until so many weights are pruned that one more is worse.
    stays = {max(((layer, n) for n in range(16)), key=lambda one: means[one]) for layer in range(3)}
    order = sorted(set(means) - stays, key=lambda one: means[one])
    pruned = [one for one in means if not flags[one]]
    assert set(pruned) == set(order[: len(pruned)])

    def count(gone: list[tuple[int, int]]) -> int:
        left = {key: torch.ones(weight.shape) for key, weight in weights.items()}
        for layer, number in gone:
            for part in of_channel(left, layer, number):
                part.zero_()
        return sum(int((tensor == 0).sum()) for tensor in left.values())

    counts = [count(order[:number]) for number in range(len(order) + 1)]
    target = round(sparsity * count_all(masks))
    assert counts[len(pruned)] == count_pruned(masks)
    assert abs(count_pruned(masks) - target) == min(abs(one - target) for one in counts)


def test_channels_with_biases_that_stay_cannot_be_removed() -> None:
    model = build(SMALL["wav2vec2-layer-norm"])
    found = SMALL["wav2vec2-layer-norm"].structures_of(model.prunable("everything", biases=False, norms=True))
    assert {one.kind for one in found} == {"heads", "units"}


def test_norms_are_prunable_with_structures_alone() -> None:
    model = build(SMALL["hubert-large"])
    plain, with_norms = (set(model.prunable("everything", norms=norms)) for norms in (False, True))
    assert plain < with_norms
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in with_norms - plain} == {"layer_norm"}
    assert len(with_norms - plain) == 8
    assert model.prunable("transformer", norms=True).keys() == model.prunable("transformer").keys()


@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "wav2vec2-layer-norm"])
def test_a_pruned_channel_has_no_effect_and_can_come_back(name: str) -> None:
    """While it trains the network computes what would be shipped, and a gradient reaches what is pruned."""
    architecture = SMALL[name]
    model = randomise(build(architecture, vocabulary_size=5))
    prunable = model.prunable("everything", norms=True)
    structures = architecture.structures_of(prunable)
    pattern = Pattern.parse("channels")
    weights: Any = pattern.among(prunable, where="the test", structures=structures)
    settings = Settings(sparsity=0.5, schedule=Schedule(interval=2, updates=4), pattern=pattern, structures=structures)
    method = spec_of("parp").build(settings)
    values = {key: weight.detach().clone() for key, weight in weights.items()}
    pruner = Pruner(weights, method.settings.keep_largest(values, 0.5), method=method)
    pruner.start()
    sound = torch.randn(1, 4_000)
    with torch.no_grad():
        adjusting = model(sound)[0]
        with pruner.pruned_view() as (masks, _):
            assert all(torch.equal(mask, pruner.masks[key]) for key, mask in masks.items())
            torch.testing.assert_close(model(sound)[0], adjusting, atol=1e-5, rtol=0)
    model(sound)[0].square().sum().backward()
    for structure in pattern.chosen(structures):
        kept = pruner.masks[next(iter(structure.parts))].flatten(1).any(1)
        assert not kept.all()
        reached = torch.zeros(16, dtype=torch.bool)
        for key, (dimension, _) in structure.parts.items():
            reaches = weights[key].grad != 0
            lines = reaches.movedim(dimension, 0).reshape(16, -1).any(1)
            reached |= lines
        assert reached.all()
    for update in range(1, 5):
        pruner.after_step(update)
    assert all(not weights[key][~mask].any() for key, mask in pruner.masks.items())
