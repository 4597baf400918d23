"""Results of stages as text and tables."""

import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from parp_cli.console import Output, duration, percent, size
from parp_cli.errors import first_few

if TYPE_CHECKING:
    from parp_cli.exporters.target import ExportResult
    from parp_cli.stages.finetune import FinetuneResult, Plan
    from parp_cli.stages.inspect import Inspection
    from parp_cli.stages.pretrain import PretrainResult
    from parp_cli.storage.checkpoint import Sparsity

_BARS = "▁▂▃▄▅▆▇█"
_LONGEST_SPARKLINE = 48
_WIDEST = 120  # characters of a table where there is no terminal
_LAYER_COLUMN = 13  # characters of the table of re-prunings, with its frame
_BESIDE_SPARKLINE = 17  # its sum, and the frame of both


def kept_zeros(output: Output, count: int, amount: "Sparsity") -> None:
    """Weights that a mask keeps although they are zero, if there are any, and how much is zero with them."""
    if count:
        share = percent((amount.pruned + count) / amount.total)
        output.text(
            f"{count:,} of the kept weights are zero ({share} of all are): as good as pruned, until they are trained on"
        )


def recipe_keys(output: Output, kind: Any) -> None:
    """Every key of a kind of recipe: its default, what it may be, and what it means."""
    from parp_cli.config.help import keys_of

    keys = list(keys_of(kind))
    for key in keys:
        lines = [key.expected, *textwrap.wrap(key.meaning, 100)]
        output.text(f"{key.name}: {key.default or ''}", *(f"    {line}" for line in lines))
    output.json({"keys": keys})


Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
"""By a key of rows, the title of its column and how a value is shown."""


def rows(output: Output, title: str, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of some keys of rows."""
    shown = [[show(row[key]) for key, (_, show) in columns.items()] for row in rows]
    output.table(title, [title for title, _ in columns.values()], shown)


def amount(size: float, unit: str) -> str:
    """A size in a task's unit: seconds as a duration."""
    return duration(size) + unit.removeprefix("s") if unit.startswith("s of ") else f"{size:,.0f} {unit}"


def plan(output: Output, plan: "Plan") -> None:
    """What a run will do, before it starts."""
    repruning = f"{plan.reprunings}, every {plan.repruning_interval} updates" if plan.reprunings else "none"
    growth = f"{percent(plan.start_sparsity)} to " if plan.start_sparsity < plan.sparsity else ""
    updates = f"{plan.updates:,}"
    if len(plan.rounds) > 1:  # IMP's rounds together: "5 rounds of 66, imp 400"
        counts = Counter((kind.split()[0], count) for kind, count in plan.rounds)
        words = [
            f"{n} rounds of {count:,}" if kind == "round" else f"{kind} {count:,}"
            for (kind, count), n in counts.items()
        ]
        updates = f"{sum(count for _, count in plan.rounds):,} in {len(plan.rounds)} runs: {', '.join(words)}"
    skipped = f", {plan.skipped} left out" if plan.skipped else ""
    rows = [
        ("start", f"{plan.start} ({plan.architecture})"),
        ("pruning", f"{plan.method}, sparsity {growth}{percent(plan.sparsity)}"),
        ("re-prunings", repruning),
        ("outputs", str(plan.outputs)),
        ("train", f"{plan.train_items:,} {plan.item_name}, {amount(plan.train_size, plan.size_unit)}{skipped}"),
        ("valid", f"{plan.valid_items:,} {plan.item_name}, {amount(plan.valid_size, plan.size_unit)}"),
        ("updates", updates),
        ("per update", f"{plan.size_per_update:.1f} {plan.size_unit}, forward passes: {plan.micro_batches_per_update}"),
        ("epochs", f"{plan.epochs:.1f}"),
    ]
    output.table("The run", ("", ""), rows)


def _metric(name: str, value: float | None) -> str:
    """As people read it: all but perplexities are shares."""
    return f"{value:.2f}" if name == "perplexity" and value is not None else percent(value)


def finetune(output: Output, result: "FinetuneResult") -> None:
    """The result of a run."""
    columns = ("update", "loss", *result.shown)
    rows = []
    for validation in result.validations:
        star = " *" if validation == result.best else ""
        found = [validation.metrics[name] for name in result.shown.values()]
        loss = "–" if validation.train_loss is None else f"{validation.train_loss:.3f}"
        rows.append([f"{validation.update}{star}", loss, *map(_metric, result.shown, found)])
    output.table("Validation (* best)", columns, rows)
    if result.reprunings:
        revived = sum(repruning.revived for repruning in result.reprunings)
        times = "once" if len(result.reprunings) == 1 else f"{len(result.reprunings)} times"
        output.text(f"re-pruned {times}, {revived:,} weights revived in all")
        if not revived:
            interval = f"{min(result.plan.repruning_interval, result.plan.updates):,} updates"
            output.text(
                f"the first mask decided: in {interval} no pruned weight outgrew a kept one; a longer pruning.interval "
                "or a higher training.learning_rate may let some come back, or take a better first mask "
                "(pruning.initial=omp)"
            )
    output.text(*(f"left out {line}" for line in first_few(result.skipped)))
    if result.skipped_updates:
        many = "an update was" if result.skipped_updates == 1 else f"{result.skipped_updates:,} updates were"
        output.text(f"{many} skipped: no finite loss or gradient; the log in the run folder has the utterances")
    pruned = "dense" if result.sparsity is None else f"{percent(result.sparsity.exact)} sparse"
    cost = result.cost
    output.text(f"{pruned}, {amount(cost.audio_seconds, result.plan.size_unit)} in {duration(cost.seconds)}")
    if cost.updates > result.own_cost.updates:
        output.text(f"{cost.updates:,} updates in all, {result.own_cost.updates:,} of them in the run proper")
    if result.advice is not None:
        output.text(f"it has not learned yet: {result.advice}")
    output.wrote(result.path, result.last)


def inspection(output: Output, result: "Inspection") -> None:
    """What a checkpoint holds."""
    metadata = result.metadata
    architecture = metadata.architecture.get("name", "?")
    vocabulary = "none" if metadata.vocabulary is None else f"{len(metadata.vocabulary)} {metadata.labels}"
    if (head := metadata.task) is not None and head["kind"] == "classification":
        vocabulary = (
            f"{len(head['names'])} classes: {', '.join(first_few(head['names'], 10))}" if head["names"] else "a number"
        )
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
    if (share := metadata.sparsity) is not None:
        rows.append(
            ("sparsity", f"{percent(share.exact)}: {share.pruned:,} of {share.total:,}, target {share.target:g}")
        )
    output.table("Checkpoint", ("", ""), rows)
    _sparsities(output, result)
    _reprunings(output, result)
    if metadata.recipe is not None:
        import yaml

        output.text("Recipe", yaml.safe_dump(dict(metadata.recipe), sort_keys=False).rstrip())


def export(output: Output, result: "ExportResult") -> None:
    """Sizes and speed before and after, of an export that was compared with its checkpoint; and what zeros gain."""
    from parp_cli.exporters.targets import target_of
    from parp_cli.exporters.text_check import TextCheck

    if result.zeros and target_of(result.target).with_zeros:
        output.text(
            f"its {result.zeros:,} zeros gain nothing there, in size or speed: they are computed as other numbers; "
            "--to packed leaves them out of the file, pruning.pattern=structures and `parp shrink` out of the network"
        )
    before, after, check = result.before, result.after, result.check
    if before is None or after is None or check is None:
        return
    names = {
        "parameters": "parameters",
        "heads": "attention heads",
        "units": "feed-forward units",
        "blocks": "blocks",
        "channels": "channels of convolutions",
    }
    counts = [[title, *(getattr(each, key) for each in (before, after))] for key, title in names.items()]
    rows = [[title, f"{old:,}", f"{new:,}"] for title, old, new in counts if old != new or result.target == "small"]
    rows.append(["file", size(before.bytes), size(after.bytes)])
    changed: tuple[str, int | None, int | None, str]
    if isinstance(check, TextCheck):
        unit, (ours, theirs) = "text", check.seconds_per_text
        where = f"{check.texts} texts of {check.tokens[0]} to {check.tokens[1]} tokens"
        changed = ("predictions", check.predictions_changed, check.texts, "")
    else:
        unit, (ours, theirs) = "second of speech", check.real_time_factors
        where = f"speech of {', '.join(f'{seconds:.1f}' for seconds in check.seconds)} s"
        by = "" if check.transcribed_by is None else f", by {check.transcribed_by}"
        changed = ("transcripts", check.transcripts_changed, check.transcripts, by)
    if result.target != "packed":  # which computes with the same whole matrices
        rows.append([f"seconds per {unit}", f"{ours:.4f}", f"{theirs:.4f}"])
    output.table("Before and after", ("", "checkpoint", result.target), rows)
    if result.integer_products is not None:
        output.text(f"{result.integer_products} matrix products of 8-bit integers; all else stays float32")
    if result.kernels is not None:
        _kernels(output, result.kernels, result.measured_on)
    speed = (
        "a smaller file, as fast as before" if result.target == "packed" else f"{ours / theirs:.2f} times as fast there"
    )
    output.text(f"largest difference of a logit: {check.largest_difference:.1e}, on {where}; {speed}")
    what, count, among, by = changed
    if count is not None:
        output.text(f"{what} changed: {count} of {among}{by}")


def _kernels(output: Output, kernels: Mapping[str, int], device: str | None) -> None:
    """How the matrices of a sparse export are computed, and whether that gains anything."""
    titles = {
        "dense": "dense",
        "csr": "as compressed rows",
        "int8": "in 8-bit integers",
        "2:4": "by sparse tensor cores, in bfloat16",
    }
    output.text(
        "matrices: " + ", ".join(f"{kernels[kind]} {title}" for kind, title in titles.items() if kind in kernels)
    )
    if set(kernels) == {"dense"}:
        others = "--to small" if device == "cuda" else "--int8 or --to small"
        where = "GPU" if device == "cuda" else "processor"
        output.text(f"no gain: on this {where} none of them is faster otherwise; {others} may be")


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
    rows.append(["all", *(percent(group.sparsity) for group in (*result.by_kind, result.overall))])
    output.table("Sparsity by layer and kind of module", ("layer", *kinds, "all"), rows)


def _reprunings(output: Output, result: "Inspection") -> None:
    """Revived and dropped weights over the run, one row per layer; each sparkline is followed by its sum."""
    from parp_cli.pruning.plots import changes

    reprunings = result.reprunings
    if not reprunings:
        return
    shown = changes(reprunings)
    room = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 0)).columns) - _LAYER_COLUMN
    width = room // len(shown) - _BESIDE_SPARKLINE
    rows = [[layer] for layer in (*shown[0].by_layer, "all")]
    for change in shown:
        # The layers of a column have one scale, their sum has its own.
        scale = max((max(_averaged(counts, width)) for counts in change.by_layer.values()), default=0.0)
        for row, counts in zip(rows, (*change.by_layer.values(), change.overall), strict=True):
            line = sparkline(counts, width, None if row[0] == "all" else scale)
            row += [line, f"{sum(counts):,}"]
    first, last = reprunings[0], reprunings[-1]
    times = f"{len(reprunings)} times, update {first.update:,} to {last.update:,}"
    if len(reprunings) == 1:
        times = f"once, at update {first.update:,}"
    output.table(f"Re-pruned {times}", ("layer", *(head for change in shown for head in (change.name, "in all"))), rows)
    sparsities = [repruning.sparsity for repruning in reprunings]
    if len(set(sparsities)) > 1:
        line = sparkline(sparsities, width)
        output.text(f"sparsity {line} from {percent(first.sparsity)} to {percent(last.sparsity)}")


def sparkline(values: Sequence[float], width: int, highest: float | None = None) -> str:
    """Non-negative values, at least one, as bars of eight heights; more than `width` characters are averaged.

    `highest` is what the highest bar stands for; by default the largest value or average.
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
    output.text(f"learned from {result.hours:.1f} hours of speech in {duration(result.seconds)}")
    output.wrote(result.path)
