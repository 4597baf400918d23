"""What `parp quickstart` ends in: a small and fast model to keep."""

from pathlib import Path
from typing import Any

from parp_cli.cli import render
from parp_cli.console import Output, percent, size
from parp_cli.errors import UsageError

_SPARSITY = 0.5
_SHARE = 3
"""The dense run has so many times the updates in which the structures are pruned: so that all ends within minutes."""


def quickstart_small(
    output: Output, run: Path, dense: dict[str, Any], settings: tuple[str, ...], *, updates: int, device: Any
) -> dict[str, Any] | None:
    """Prune whole heads and units of the dense network, which also teaches, in some more updates; remove them; export
    what is left to ONNX with 8-bit integers; show sizes, speed and error rates beside the dense network's.

    Args:
        dense: its row of the quickstart's table.
        settings: of the quickstart's recipes.
        updates: of the dense run.

    Returns:
        The rows of the table, transcripts that 8-bit integers changed, and the files written; None where the extra
        `onnx` is not installed, which is said.
    """
    from parp_cli.exporters.onnx import require_onnx

    try:
        require_onnx()
    except UsageError as error:
        output.text(f"no small model: {error.message}; {error.hint}")
        return None
    updates = max(1, updates // _SHARE)
    made = _made(output, run / "small", dense, settings, updates, device)
    rows: list[dict[str, Any]] = made["rows"]
    columns: render.Columns = {
        "model": ("model", str),
        "parameters": ("parameters", lambda count: f"{count / 1e6:.1f} M"),
        "size": ("file", size),
        "real_time_factor": ("seconds per second of speech", lambda factor: f"{factor:.4f}"),
        "word": ("WER", lambda rate: "" if rate is None else percent(rate)),
    }
    render.rows(output, "To keep", columns, rows)
    smaller, faster = (rows[0][key] / rows[-1][key] for key in ("size", "real_time_factor"))
    output.text(
        f"{percent(_SPARSITY)} of the dense network's heads and units were pruned in {updates} updates, and removed.",
        f"In ONNX with 8-bit integers the file is {smaller:.1f} times smaller than the dense one, and the model "
        f"{faster:.1f} times as fast.",
        f"8-bit integers change {made['transcripts_changed']} of {made['transcripts']} transcripts of the small one.",
        *made["compared"],
    )
    return made


def _made(
    output: Output, folder: Path, dense: dict[str, Any], settings: tuple[str, ...], updates: int, device: Any
) -> dict[str, Any]:
    from parp_cli.config.load import load_recipe
    from parp_cli.exporters.check import Check
    from parp_cli.stages.evaluate import Options, evaluate
    from parp_cli.stages.export import export
    from parp_cli.stages.finetune import finetune
    from parp_cli.storage.run_folder import EXPORTS

    own = (
        "pruning.method=parp",
        "pruning.pattern=structures",
        f"pruning.sparsity={_SPARSITY}",
        f"distil.teacher={dense['checkpoint']}",
        f"training.updates={updates}",
        f"training.validate_every={updates}",
    )
    recipe, start = load_recipe(None, [*settings, *own]), dense["checkpoint"]
    with output.progress() as notify:
        output.note("a small model of the dense one")
        tuned = finetune(recipe, run=folder, init=start, resume=folder.exists(), device=device, notify=notify)
        options = Options(against=(dense["hypotheses"],))
        results = folder / "eval-test-clean.jsonl"
        evaluated = evaluate(tuned.path, out=results, options=options, device=device, notify=notify).as_it_is
        small = export(tuned.path, to="small", out=folder / EXPORTS["small"], notify=notify)
        onnx = export(small.path, to="onnx", int8=True, out=folder / EXPORTS["onnx-int8"], notify=notify)
    words = evaluated.errors("words")
    assert small.before is not None
    assert small.after is not None
    assert isinstance(small.check, Check)
    assert isinstance(onnx.check, Check)
    assert words is not None
    seconds = small.check.real_time_factors
    # Each export was timed in turn with what it is made from: of two such pairs only ratios go together.
    onnx_seconds = seconds[1] * onnx.check.real_time_factors[1] / onnx.check.real_time_factors[0]
    keys = ("model", "parameters", "size", "real_time_factor", "word")
    rows = (
        ("dense", small.before.parameters, dense["size"], seconds[0], dense["word"]),
        ("small", small.after.parameters, small.size, seconds[1], words.rate),
        ("small, ONNX int8", small.after.parameters, onnx.size, onnx_seconds, None),
    )
    return {
        "rows": [dict(zip(keys, row, strict=True)) for row in rows],
        "transcripts": onnx.check.transcripts,
        "transcripts_changed": onnx.check.transcripts_changed,
        "compared": [comparison.words for comparison in evaluated.report.comparisons],
        "written": [tuned.path, small.path, onnx.path],
    }
