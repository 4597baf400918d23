"""Results of stages as text and tables."""

import math
import shutil
import textwrap
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from parp_cli.console import Output, duration, percent, size
from parp_cli.errors import first_few

if TYPE_CHECKING:
    from parp_cli.stages.finetune import FinetuneResult, Plan
    from parp_cli.stages.inspect import Inspection
    from parp_cli.stages.pretrain import PretrainResult

_BARS = "▁▂▃▄▅▆▇█"
_LONGEST_SPARKLINE = 48
_WIDEST = 120  # characters of a table where there is no terminal
_LAYER_COLUMN = 13  # characters of the table of re-prunings, with its frame
_BESIDE_SPARKLINE = 17  # its sum, and the frame of both


def recipe_keys(output: Output, kind: Any) -> None:
    """Every key of a kind of recipe: its default, what it may be, and what it means."""
    from parp_cli.config.help import keys_of

    keys = list(keys_of(kind))
    for key in keys:
        output.text(f"{key.name}: {key.default or ''}")
        output.text(f"    {key.expected}")
        for line in textwrap.wrap(key.meaning, 100):
            output.text(f"    {line}")
    output.json({"keys": keys})


def plan(output: Output, plan: "Plan") -> None:
    """What a run will do, before it starts."""
    repruning = "none"
    if plan.reprunings:
        repruning = f"{plan.reprunings}, every {plan.repruning_interval} updates"
    growth = f"{percent(plan.start_sparsity)} to " if plan.start_sparsity < plan.sparsity else ""
    updates = f"{plan.updates:,}"
    if len(plan.rounds) > 1:
        updates = f"{sum(count for _, count in plan.rounds):,} in {len(plan.rounds)} runs: {_rounds(plan.rounds)}"
    skipped = f", {plan.skipped} left out" if plan.skipped else ""
    rows = [
        ("start", f"{plan.start} ({plan.architecture})"),
        ("pruning", f"{plan.method}, sparsity {growth}{percent(plan.sparsity)}"),
        ("re-prunings", repruning),
        ("labels", str(plan.labels)),
        ("train", f"{plan.train_utterances:,} utterances, {duration(plan.train_seconds)}{skipped}"),
        ("valid", f"{plan.valid_utterances:,} utterances, {duration(plan.valid_seconds)}"),
        ("updates", updates),
        ("audio per update", f"{plan.seconds_per_update:.1f} s, forward passes: {plan.micro_batches_per_update}"),
        ("epochs", f"{plan.epochs:.1f}"),
    ]
    output.table("The run", ("", ""), rows)


def _rounds(rounds: Sequence[tuple[str, int]]) -> str:
    """The training runs of a method, IMP's rounds taken together: "5 rounds of 66, imp 400"."""
    parts = []
    for (kind, updates), group in groupby(rounds, key=lambda this: (this[0].split()[0], this[1])):
        parts.append(f"{len(list(group))} rounds of {updates:,}" if kind == "round" else f"{kind} {updates:,}")
    return ", ".join(parts)


def finetune(output: Output, result: "FinetuneResult") -> None:
    """The result of a run."""
    phones = result.best.metrics["character"] is None
    columns = ("update", "loss", "PER" if phones else "WER", *(() if phones else ("CER",)), "blank")
    rows = []
    for validation in result.validations:
        star = " *" if validation == result.best else ""
        metrics = validation.metrics
        rates = [percent(metrics["word"])] + ([] if phones else [percent(metrics["character"])])
        loss = "–" if validation.train_loss is None else f"{validation.train_loss:.3f}"
        rows.append([f"{validation.update}{star}", loss, *rates, percent(metrics["blank_rate"])])
    output.table("Validation (* best)", columns, rows)
    if result.reprunings:
        revived = sum(repruning.revived for repruning in result.reprunings)
        times = "once" if len(result.reprunings) == 1 else f"{len(result.reprunings)} times"
        output.text(f"re-pruned {times}, {revived:,} weights revived in all")
    for line in first_few(result.skipped):
        output.text(f"left out {line}")
    if result.skipped_updates:
        many = "an update was" if result.skipped_updates == 1 else f"{result.skipped_updates:,} updates were"
        output.text(f"{many} skipped: no finite loss or gradient; the log in the run folder has the utterances")
    amount = "dense" if result.sparsity is None else f"{percent(result.sparsity.exact)} sparse"
    cost = result.cost
    output.text(f"{amount}, {duration(cost.audio_seconds)} of audio heard in {duration(cost.seconds)}")
    if cost.updates > result.own_cost.updates:
        output.text(f"{cost.updates:,} updates in all, {result.own_cost.updates:,} of them in the run proper")
    output.text(f"wrote {result.path}")
    output.text(f"wrote {result.last}")


def inspection(output: Output, result: "Inspection") -> None:
    """What a checkpoint holds."""
    metadata = result.metadata
    architecture = metadata.architecture.get("name", "?")
    vocabulary = "none" if metadata.vocabulary is None else f"{len(metadata.vocabulary)} {metadata.labels}"
    rows = [
        ("file", f"{result.path} ({size(result.size)})"),
        ("sha256", result.sha256),
        ("architecture", str(architecture)),
        ("stage", metadata.stage),
        ("seed", str(metadata.seed)),
        ("output labels", vocabulary),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(metadata.versions.items()))),
    ]
    rows += [("parent", f"{p.stage}: {p.file} {p.sha256[:16]}…") for p in metadata.parents]
    if metadata.sparsity is not None:
        amount = metadata.sparsity
        rows.append(
            ("sparsity", f"{percent(amount.exact)}: {amount.pruned:,} of {amount.total:,}, target {amount.target:g}")
        )
    output.table("Checkpoint", ("", ""), rows)
    _sparsities(output, result)
    _reprunings(output, result)
    if metadata.recipe is not None:
        import yaml

        output.text("Recipe")
        output.text(yaml.safe_dump(dict(metadata.recipe), sort_keys=False).rstrip())


def _sparsities(output: Output, result: "Inspection") -> None:
    """Layers down, kinds of module across."""
    if result.overall is None:
        output.text("no mask")
        return
    kinds = [group.name for group in result.by_kind]
    rows = []
    for layer in result.by_layer:
        cells = [result.by_layer_and_kind.get((layer.name, kind)) for kind in kinds]
        rows.append([layer.name, *(percent(cell.sparsity) if cell else "" for cell in cells), percent(layer.sparsity)])
    rows.append(["all", *(percent(group.sparsity) for group in result.by_kind), percent(result.overall.sparsity)])
    output.table("Sparsity by layer and kind of module", ("layer", *kinds, "all"), rows)


def _reprunings(output: Output, result: "Inspection") -> None:
    """Revived and dropped weights over the run, a row a layer: a column's layers have one scale, their sum its own."""
    from parp_cli.pruning.plots import changes

    reprunings = result.reprunings
    if not reprunings:
        return
    shown = changes(reprunings)
    room = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 0)).columns) - _LAYER_COLUMN
    width = room // len(shown) - _BESIDE_SPARKLINE
    by_layer = {layer: [change.by_layer[layer] for change in shown] for layer in shown[0].by_layer}
    overall = [change.overall for change in shown]
    scales = [_highest(list(change.by_layer.values()), width) for change in shown]
    rows = [_drawn(layer, counts, width, scales) for layer, counts in by_layer.items()]
    rows.append(_drawn("all", overall, width, [_highest([counts], width) for counts in overall]))
    times = f"{len(reprunings)} times, update {reprunings[0].update:,} to {reprunings[-1].update:,}"
    if len(reprunings) == 1:
        times = f"once, at update {reprunings[0].update:,}"
    heads = [head for change in shown for head in (change.name, "in all")]
    output.table(f"Re-pruned {times}", ("layer", *heads), rows)
    sparsities = [repruning.sparsity for repruning in reprunings]
    if len(set(sparsities)) > 1:
        line = sparkline(sparsities, width)
        output.text(f"sparsity {line} from {percent(sparsities[0])} to {percent(sparsities[-1])}")


def _drawn(label: str, counts: Sequence[Sequence[int]], width: int, scales: Sequence[float]) -> list[str]:
    """A row of sparklines, each with what its highest bar may stand for, and with its sum."""
    cells = [label]
    for values, scale in zip(counts, scales, strict=True):
        cells += [sparkline(values, width, scale), f"{sum(values):,}"]
    return cells


def _highest(counts: Sequence[Sequence[int]], width: int) -> float:
    """What the highest bar of several sparklines stands for."""
    return max((mean for values in counts for mean in _averaged(values, width)), default=0.0)


def sparkline(values: Sequence[float], width: int, highest: float | None = None) -> str:
    """Non-negative values as bars of eight heights; more than `width` are averaged.

    Args:
        values: at least one.
        width: in characters.
        highest: what the highest bar stands for; by default the largest value or average.
    """
    means = _averaged(values, width)
    scale = (max(means) if highest is None else highest) or 1.0
    return "".join(_BARS[max(0, math.ceil(mean / scale * len(_BARS)) - 1)] for mean in means)


def _averaged(values: Sequence[float], width: int) -> list[float]:
    width = max(1, min(width, _LONGEST_SPARKLINE, len(values)))
    edges = [place * len(values) // width for place in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def pretraining(output: Output, result: "PretrainResult") -> None:
    """How a pre-training went."""
    rows = [
        [
            f"{int(e['stage'])}",
            f"{int(e['update']):,}",
            "–" if e["loss"] is None else f"{e['loss']:.3f}",
            percent(e["accuracy"]),
        ]
        for e in (*result.history[:-1][:: max(1, len(result.history) // 20)], *result.history[-1:])
    ]
    output.table("Masked prediction", ("stage", "update", "loss", "accuracy"), rows)
    output.text(f"learnt from {result.hours:.1f} hours of speech in {duration(result.seconds)}")
    output.text(f"wrote {result.path}")
