"""Results of stages as text and tables."""

from typing import TYPE_CHECKING

from parp_cli.console import Output, duration, percent, size

if TYPE_CHECKING:
    from parp_cli.decoding.metrics import ErrorRate
    from parp_cli.stages.evaluate import EvaluateResult
    from parp_cli.stages.finetune import FinetuneResult
    from parp_cli.stages.inspect import Inspection
    from parp_cli.stages.pretrain import PretrainResult
    from parp_cli.training.preparation import Plan


def plan(output: Output, plan: "Plan") -> None:
    """The figures of a run that has not begun."""
    repruning = "none"
    if plan.reprunings:
        repruning = f"{plan.reprunings}, every {plan.repruning_interval} updates and at the end"
    skipped = f", {plan.skipped} left out" if plan.skipped else ""
    rows = [
        ("start", f"{plan.start} ({plan.architecture})"),
        ("pruning", f"{plan.mode}, sparsity {percent(plan.sparsity)}"),
        ("re-prunings", repruning),
        ("labels", str(plan.labels)),
        ("train", f"{plan.train_utterances:,} utterances, {duration(plan.train_seconds)}{skipped}"),
        ("valid", f"{plan.valid_utterances:,} utterances, {duration(plan.valid_seconds)}"),
        ("updates", f"{plan.updates:,}"),
        ("audio an update", f"{plan.seconds_per_update:.1f} s in {plan.micro_batches_per_update} micro-batches"),
        ("epochs", f"{plan.epochs:.1f}"),
    ]
    output.table("The run", ("", ""), rows)


def finetune(output: Output, result: "FinetuneResult") -> None:
    """How a run went."""
    from parp_cli.data.problems import shown

    phones = result.best.character is None
    columns = ("update", "loss", "PER" if phones else "WER", *(() if phones else ("CER",)))
    rows = []
    for validation in result.validations:
        star = " *" if validation == result.best else ""
        rates = [percent(validation.word)] + ([] if phones else [percent(validation.character)])
        rows.append([f"{validation.update}{star}", f"{validation.train_loss:.3f}", *rates])
    output.table("Validation (* best)", columns, rows)
    if result.reprunings:
        revived = sum(repruning.revived for repruning in result.reprunings)
        output.text(f"re-pruned {len(result.reprunings)} times, {revived:,} weights revived in all")
    for line in shown(result.skipped):
        output.text(f"left out {line}")
    amount = "dense" if result.sparsity is None else f"{percent(result.sparsity.exact)} sparse"
    heard = f"{duration(result.audio_seconds)} of audio heard in {duration(result.seconds)}"
    output.text(f"{amount}, {heard}")
    output.text(f"wrote {result.path}")
    output.text(f"wrote {result.last}")


def evaluation(output: Output, result: "EvaluateResult") -> None:
    """Error rates of a split."""
    rows = [
        _error_row(name, errors)
        for name, errors in (("WER", result.words), ("CER", result.characters), ("PER", result.phones))
        if errors is not None
    ]
    columns = (result.split, "rate", "substituted", "deleted", "inserted", "of")
    output.table(f"{result.checkpoint}, {percent(result.sparsity)} sparse", columns, rows)
    output.text(
        f"{result.utterances:,} utterances, {duration(result.audio_seconds)} of audio in {duration(result.seconds)} "
        f"(real-time factor {result.real_time_factor:.3f})"
    )
    output.text(f"wrote {result.hypotheses}")
    output.text(f"wrote {result.figures}")


def _error_row(name: str, errors: "ErrorRate") -> list[str]:
    counts = (errors.substitutions, errors.deletions, errors.insertions, errors.tokens)
    return [name, f"{errors.rate:.2%}", *(f"{count:,}" for count in counts)]


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


def pretraining(output: Output, result: "PretrainResult") -> None:
    """How a pre-training went."""
    rows = [
        [f"{int(e['stage'])}", f"{int(e['update']):,}", f"{e['loss']:.3f}", percent(e["accuracy"])]
        for e in (*result.history[:-1][:: max(1, len(result.history) // 20)], *result.history[-1:])
    ]
    output.table("Masked prediction", ("stage", "update", "loss", "accuracy"), rows)
    output.text(f"learnt from {result.hours:.1f} hours of speech in {duration(result.seconds)}")
    output.text(f"wrote {result.path}")
