"""What defines each method, shown on whole runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.config.finetune import Recipe
from parp_cli.errors import CheckpointError
from parp_cli.models.sources.load import random_encoder
from parp_cli.pruning.masks import Masks, count_pruned
from parp_cli.runtime.device import resolve_precision
from parp_cli.runtime.progress import silent
from parp_cli.stages.finetune import FinetuneResult, finetune
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint
from parp_cli.tasks.task import task_class
from parp_cli.training.keys import round_key, start_key
from parp_cli.training.plan import rounds_of
from tests.stages.spies import Beginning, Change
from tests.tiny import TINY, World, write_encoder

N = 16832
"""Prunable weights of the tiny encoder."""

ONE_VALIDATION = "training.validate_every=12"
"""Where validations do not matter, one at the end."""


def smallest(weights: Mapping[str, Tensor], names: Sequence[str], count: int) -> dict[str, Tensor]:
    """The mask that prunes the `count` smallest magnitudes, by a sort of everything."""
    flat = torch.cat([weights[name].float().abs().flatten() for name in names])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[torch.sort(flat, stable=True).indices[:count]] = False
    parts = torch.split(kept, [weights[name].numel() for name in names])
    return {name: part.reshape(weights[name].shape) for name, part in zip(names, parts, strict=True)}


def same(ours: Masks, theirs: Masks) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_rewound(run: Beginning, source: Mapping[str, Tensor]) -> None:
    """Its weights are those of the source, and zero where its mask prunes."""
    for name, weight in source.items():
        expected = weight.float()
        if name in run.masks:
            expected = torch.where(run.masks[name], expected, 0.0)
        assert torch.equal(run.weights[name], expected), name


def intermediate(recipe: Recipe, run: Path, number: int) -> Checkpoint:
    """The last checkpoint of a method's run with this number, from 1."""
    return checkpoint.read(run / "rounds" / key_of(recipe, number) / "finetune-last.safetensors")


def key_of(recipe: Recipe, number: int) -> str:
    """The key of a method's run with this number."""
    data = task_class(recipe.task).data_key(recipe.data, silent)
    return round_key(rounds_of(precise(recipe))[:number], start_key(recipe), [data] * number)


def precise(recipe: Recipe) -> Recipe:
    """As runs are keyed: with what `auto` comes to."""
    precision = resolve_precision(recipe.training.precision, torch.device("cpu"))
    return replace(recipe, training=replace(recipe.training, precision=precision))


@pytest.fixture(scope="module")
def encoder(world: World) -> dict[str, Tensor]:
    return dict(checkpoint.read(world.encoder).weights)


@pytest.fixture(scope="module")
def names(masked: Path) -> tuple[str, ...]:
    """Of the prunable weights, in their order."""
    return checkpoint.read_metadata(masked).prunable


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the same shapes."""
    path = tmp_path_factory.mktemp("other") / "encoder.safetensors"
    write_encoder(path, seed=5)
    return path


# ------------------------------------------------------------------------------------------------- one-shot masks


def test_mpi_is_the_pretrained_magnitudes(
    world: World, encoder: dict[str, Tensor], names: tuple[str, ...], tmp_path: Path
) -> None:
    result = finetune(world.recipe("pruning.method=mpi", "pruning.sparsity=0.3"), run=tmp_path)
    expected = smallest(encoder, names, round(0.3 * N))
    for path in (result.path, result.last):
        content = checkpoint.read(path)
        assert same(content.masks, expected)
        assert all((content.weights[name][~kept] == 0).all() for name, kept in expected.items())
    assert result.reprunings == ()
    assert result.cost.updates == 12


@pytest.mark.parametrize("initial", ["random", "random-weights"])
def test_rp_ignores_magnitudes(
    world: World, other_encoder: Path, encoder: dict[str, Tensor], names: tuple[str, ...], tmp_path: Path, initial: str
) -> None:
    def made(*settings: str) -> Masks:
        recipe = world.recipe("pruning.method=rp", f"pruning.initial={initial}", "training.updates=2", *settings)
        return checkpoint.read(finetune(recipe, run=tmp_path).last).masks

    masks = made()
    assert same(masks, made(f"model={other_encoder}"))
    assert count_pruned(masks) == N // 2
    assert not same(masks, made("seed=1"))
    if initial == "random-weights":
        assert same(masks, smallest(random_encoder(TINY, seed=0).weights, names, N // 2))
    else:
        sizes = torch.cat([encoder[name].float().abs()[~masks[name]] for name in names])
        everything = torch.cat([encoder[name].float().abs().flatten() for name in names])
        assert sizes.mean().item() == pytest.approx(everything.mean().item(), rel=0.05), (
            "large ones go as well as small ones"
        )


def test_a_mask_is_laid_over_another_model(
    world: World, masked: Path, other_encoder: Path, beginnings: list[Beginning], tmp_path: Path
) -> None:
    recipe = world.recipe("pruning.method=fixed", f"pruning.initial={masked}", f"model={other_encoder}")
    result = finetune(recipe, run=tmp_path)
    assert_rewound(beginnings[0], checkpoint.read(other_encoder).weights)
    assert same(checkpoint.read_masks(result.last), checkpoint.read_masks(masked))


# ------------------------------------------------------------------------------------------------------ rewinding


@pytest.fixture(scope="module")
def early(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run's checkpoint after two updates."""
    recipe = world.recipe("pruning.method=dense", "training.updates=2")
    return finetune(recipe, run=tmp_path_factory.mktemp("early")).last


@pytest.mark.parametrize("rewind", [False, True])
def test_omp(
    world: World,
    encoder: dict[str, Tensor],
    names: tuple[str, ...],
    early: Path,
    beginnings: list[Beginning],
    tmp_path: Path,
    rewind: bool,
) -> None:
    """Dense fine-tuning, the magnitudes it ends with, and back to the weights before."""
    settings = [f"pruning.rewind={early}"] if rewind else []
    recipe = world.recipe("pruning.method=omp", "pruning.sparsity=0.7", *settings, ONE_VALIDATION)
    result = finetune(recipe, run=tmp_path)
    dense, final = beginnings
    assert (dense.name, dense.masks) == ("dense", {})
    assert_rewound(dense, encoder)
    searched = intermediate(recipe, tmp_path, 1).weights
    assert same(final.masks, smallest(searched, names, round(0.7 * N)))
    assert not same(final.masks, smallest(encoder, names, round(0.7 * N)))
    assert_rewound(final, checkpoint.read(early).weights if rewind else encoder)
    content = checkpoint.read(result.last)
    assert same(content.masks, final.masks)
    assert all((content.weights[name][~kept] == 0).all() for name, kept in final.masks.items())
    assert (result.cost.updates, result.own_cost.updates) == (24, 12)
    assert result.cost.audio_seconds == pytest.approx(2 * result.own_cost.audio_seconds)
    assert result.plan.rounds == (("dense", 12), ("omp", 12))


@pytest.mark.parametrize(("sparsity", "shares"), [("0.3", [0, 0.1, 0.2, 0.3]), ("0.25", [0, 0.1, 0.2, 0.25])])
def test_imp(
    world: World,
    encoder: dict[str, Tensor],
    names: tuple[str, ...],
    beginnings: list[Beginning],
    tmp_path: Path,
    sparsity: str,
    shares: list[float],
) -> None:
    """Each round prunes some more by what training made of the weights, and goes back to the beginning."""
    recipe = world.recipe("pruning.method=imp", f"pruning.sparsity={sparsity}", ONE_VALIDATION)
    result = finetune(recipe, run=tmp_path)
    assert [run.name for run in beginnings] == ["round 1 of 3", "round 2 of 3", "round 3 of 3", "imp"]
    assert [count_pruned(run.masks) for run in beginnings] == [round(share * N) for share in shares]
    for run in beginnings:
        assert_rewound(run, encoder)
    for number, (before, after) in enumerate(pairwise(beginnings), start=1):
        assert all((before.masks[name] | ~kept).all() for name, kept in after.masks.items() if before.masks)
        last = intermediate(recipe, tmp_path, number)
        assert same(after.masks, smallest(last.weights, names, round(shares[number] * N)))
    assert result.cost.updates == 3 * 2 + 12
    assert result.sparsity is not None
    assert (result.sparsity.target, result.sparsity.pruned) == (shares[-1], round(shares[-1] * N))


def test_imp_rewinds_to_an_early_checkpoint(
    world: World, encoder: dict[str, Tensor], early: Path, beginnings: list[Beginning], tmp_path: Path
) -> None:
    finetune(world.recipe("pruning.method=imp", "pruning.sparsity=0.2", f"pruning.rewind={early}"), run=tmp_path)
    weights = checkpoint.read(early).weights
    assert_rewound(beginnings[0], encoder)
    assert len(beginnings) == 3
    for run in beginnings[1:]:
        assert_rewound(run, weights)


def test_pap_is_parps_mask_from_the_beginning(
    world: World, encoder: dict[str, Tensor], beginnings: list[Beginning], tmp_path: Path
) -> None:
    quick = ("pruning.sparsity=0.6", "training.learning_rate=0.1", ONE_VALIDATION)
    parp = checkpoint.read(finetune(world.recipe(*quick), run=tmp_path / "parp").last)
    beginnings.clear()
    result = finetune(world.recipe(*quick, "pruning.method=pap"), run=tmp_path / "pap")
    assert [run.name for run in beginnings] == ["parp", "pap"]
    assert same(beginnings[1].masks, parp.masks)
    assert not same(beginnings[0].masks, parp.masks)
    assert_rewound(beginnings[1], encoder)
    content = checkpoint.read(result.last)
    assert same(content.masks, parp.masks)
    assert result.reprunings == ()
    assert result.cost.updates == 24
    assert any((content.weights[name] != parp.weights[name]).any() for name in parp.masks)


# -------------------------------------------------------------------------------------------------- shared rounds


def test_the_dense_run_is_shared(world: World, beginnings: list[Beginning], tmp_path: Path) -> None:
    shared = tmp_path / "rounds"

    def omp(sparsity: str, run: str, rounds_folder: Path | None = None) -> bytes:
        recipe = world.recipe("pruning.method=omp", f"pruning.sparsity={sparsity}", "training.updates=4")
        return finetune(recipe, run=tmp_path / run, rounds_folder=rounds_folder).last.read_bytes()

    dense = world.recipe("pruning.method=dense", "pruning.sparsity=0.9", "training.updates=4")
    own = shared / key_of(dense, 1)
    finetune(dense, run=own)
    omp("0.3", "thirty", rounds_folder=shared)
    fifty = omp("0.5", "fifty", rounds_folder=shared)
    assert [run.name for run in beginnings] == ["dense", "omp", "omp"]
    assert [path.name for path in shared.iterdir()] == [own.name]
    assert fifty == omp("0.5", "alone")
    assert [run.name for run in beginnings[3:]] == ["dense", "omp"]


def test_imps_rounds_are_shared(world: World, beginnings: list[Beginning], tmp_path: Path) -> None:
    def imp(sparsity: str, run: str, rounds: str) -> tuple[bytes, int]:
        recipe = world.recipe("pruning.method=imp", f"pruning.sparsity={sparsity}", ONE_VALIDATION)
        result = finetune(recipe, run=tmp_path / run, rounds_folder=tmp_path / rounds)
        return result.last.read_bytes(), result.cost.updates

    imp("0.2", "twenty", "shared")
    forty = imp("0.4", "forty", "shared")
    assert [run.name for run in beginnings] == [
        *("round 1 of 2", "round 2 of 2", "imp"),
        *("round 3 of 4", "round 4 of 4", "imp"),
    ]
    assert forty == imp("0.4", "alone", "own"), "what others have computed counts as cost all the same"
    assert forty[1] == 4 * 2 + 12


# ----------------------------------------------------------------------------------------------- masks that change


def counts(result: FinetuneResult) -> list[tuple[int, int]]:
    """The updates of the re-prunings, and how many weights were pruned then."""
    return [(repruning.update, round(repruning.sparsity * N)) for repruning in result.reprunings]


@pytest.mark.parametrize(
    ("growth", "shares"),
    [("linear", [0.35, 0.5, 0.65, 0.8]), ("cubic", [0.8 - 0.6 * (1 - t) ** 3 for t in (0.25, 0.5, 0.75, 1)])],
)
def test_parp_p_grows_to_its_target(
    world: World, changes: list[Change], tmp_path: Path, growth: str, shares: list[float]
) -> None:
    settings = ("pruning.sparsity=0.8", "pruning.start_sparsity=0.2", f"pruning.growth={growth}")
    result = finetune(world.recipe("pruning.method=parp-p", *settings), run=tmp_path)
    assert count_pruned(changes[0].before) == round(0.2 * N)
    assert counts(result) == [(3 * i, round(share * N)) for i, share in enumerate(shares, start=1)]
    assert [count_pruned(change.after) for change in changes] == [count for _, count in counts(result)]
    for path in (result.path, result.last):  # also the best one, which was judged as it would be shipped
        amount = checkpoint.read_metadata(path).sparsity
        assert amount is not None
        assert (amount.target, amount.pruned) == (0.8, round(0.8 * N))


def test_parp_p_from_a_mask(world: World, masked: Path, changes: list[Change], tmp_path: Path) -> None:
    result = finetune(world.recipe("pruning.method=parp-p", "pruning.sparsity=0.9"), run=tmp_path, init=masked)
    assert same(changes[0].before, checkpoint.read_masks(masked))
    assert counts(result) == [(3, round(0.6 * N)), (6, round(0.7 * N)), (9, round(0.8 * N)), (12, round(0.9 * N))]


def test_rigl_swaps_in_every_tensor(world: World, changes: list[Change], tmp_path: Path) -> None:
    settings = ("pruning.initial=random", "pruning.sparsity=0.6", "pruning.drop_fraction=0.5", "training.layer_drop=0")
    result = finetune(world.recipe("pruning.method=rigl", *settings), run=tmp_path)
    assert [change.record.update for change in changes] == [3, 6, 9]
    assert result.reprunings == tuple(change.record for change in changes)
    shares = [0.5 / 2 * (1 + torch.cos(torch.tensor(torch.pi * update / 9)).item()) for update in (3, 6, 9)]
    for change, share in zip(changes, shares, strict=True):
        for name, before in change.before.items():
            after, gradient = change.after[name], change.gradients[name].abs()
            grown, dropped = after & ~before, before & ~after
            assert int(grown.sum()) == int(dropped.sum()) <= share * int(before.sum()) + 0.501
            assert (change.weights[name][~after] == 0).all()
            for moment in change.moments[name]:
                assert (moment[~after] == 0).all()
                assert (moment[after & before] != 0).any()
            left = ~after & ~before
            if grown.any() and left.any():
                assert gradient[grown].min() >= gradient[left].max()
        assert change.record.dropped == sum(int((b & ~change.after[n]).sum()) for n, b in change.before.items())
    assert changes[0].record.dropped > 0.5 * shares[0] * 0.4 * N
    assert changes[-1].record.dropped == 0
    content = checkpoint.read(result.last)
    assert all((content.weights[name][~kept] == 0).all() for name, kept in content.masks.items())
    sparsities = [{name: int(kept.sum()) for name, kept in change.after.items()} for change in changes]
    assert sparsities == [{name: int(kept.sum()) for name, kept in changes[0].before.items()}] * 3


def test_without_a_final_one_the_mask_stays_after_the_end(world: World, changes: list[Change], tmp_path: Path) -> None:
    settings = ("pruning.end=8", "pruning.final=false", "training.validate_every=4")
    result = finetune(world.recipe(*settings), run=tmp_path)
    assert [change.record.update for change in changes] == [3, 6]
    last = checkpoint.read(result.last)
    assert same(last.masks, changes[-1].after)
    assert all((last.weights[name][~kept] == 0).all() for name, kept in last.masks.items())


def test_start_and_end(world: World, changes: list[Change], tmp_path: Path) -> None:
    result = finetune(world.recipe("pruning.start=4", "pruning.end=8"), run=tmp_path)
    assert [change.record.update for change in changes] == [6, 12]
    assert result.plan.reprunings == 2


def test_a_rewind_to_another_model(world: World, masked: Path, tmp_path: Path) -> None:
    content = checkpoint.read(masked)
    architecture = {**content.metadata.architecture, "name": "small"}
    metadata = replace(content.metadata, architecture=architecture)
    forged = tmp_path / "small.safetensors"
    checkpoint.write(forged, Checkpoint(weights=content.weights, masks=content.masks, metadata=metadata))
    for path, reason in ((forged, "is not a tiny"), (tmp_path / "absent.safetensors", "no checkpoint")):
        with pytest.raises(CheckpointError, match=reason) as caught:
            finetune(world.recipe("pruning.method=omp", f"pruning.rewind={path}"), run=tmp_path / "run")
        assert caught.value.hint
        assert not (tmp_path / "run" / "rounds").exists(), "it is told before anything is trained"
