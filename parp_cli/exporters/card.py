"""A model card for an export: how it was made, from what, and how well it does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from parp_cli.exporters.target import Job
from parp_cli.models.sources import huggingface
from parp_cli.pruning.masks import count_all, count_pruned
from parp_cli.pruning.methods import all_specs
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import write_text
from parp_cli.storage.checkpoint import Metadata, Parent

CARD = "README.md"

_MARK = "<!-- `parp export` replaces this file as long as this line is in it. -->"
_USE = {
    "hf": """\
```python
from transformers import AutoModelForCTC, Wav2Vec2Processor

model = AutoModelForCTC.from_pretrained("PATH")
processor = Wav2Vec2Processor.from_pretrained("PATH")
inputs = processor(audio, sampling_rate=16_000, return_tensors="pt")  # audio: mono samples at 16 kHz
ids = model(**inputs).logits.argmax(-1)
print(processor.batch_decode(ids, skip_special_tokens=True))
```""",
    "encoder": """\
```python
from transformers import AutoModel

model = AutoModel.from_pretrained("PATH")  # an encoder without an output head
```""",
    "classes": """\
```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```""",
    "torchaudio": """\
```python
import torch

state = torch.load("PATH", weights_only=True)  # for torchaudio.models.wav2vec2_model, or wavlm_model
```""",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """An error rate of a checkpoint on splits of a corpus: a name such as WER, a share, and its 95 % interval."""

    corpus: str
    split: str
    metric: str
    rate: float
    interval: tuple[float, float] | None
    utterances: int
    decoding: str


def results_of(folder: Path, sha256: str) -> list[Result]:
    """What `parp eval` measured of the checkpoint with this hash, as the metrics files in a folder tell."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        report = content.get("report") if isinstance(content, dict) else None
        if not isinstance(report, dict) or content.get("mask") is not None:
            continue
        origin = dict(report.get("origin") or ())
        if not str(origin.get("checkpoint", "")).endswith(sha256):
            continue
        for metric in report["metrics"]:
            interval = metric["interval"]
            found.append(
                Result(
                    corpus=content["data"]["corpus"],
                    split=", ".join(content["splits"]),
                    metric=metric["name"],
                    rate=metric["errors"]["rate"],
                    interval=None if interval is None else (interval["low"], interval["high"]),
                    utterances=report["utterances"],
                    decoding=content["decoding"],
                )
            )
    return found


def card(
    metadata: Metadata,
    *,
    target: str,
    method: str | None,
    pruned: tuple[int, int],
    lineage: Sequence[Parent],
    results: Sequence[Result],
) -> str:
    """The text of a card, with the metadata that model hubs read at its top.

    Folders of this machine are left out: only names of files and corpora are in it.

    Args:
        target: "hf" or "torchaudio".
        method: of pruning, in a line; None where nothing trained.
        pruned: how many weights are pruned, of how many prunable ones.
        lineage: the files it descends from, the exported one last.
        results: of the exported checkpoint.
    """
    name = str(metadata.architecture.get("name", "model"))
    count, total = pruned
    share = f"{count / total:.1%} of its {total:,} prunable weights are zero" if count else "nothing in it is pruned"
    sections = [
        _header(metadata, target, name, bool(count), results),
        _MARK,
        f"# {name}\n\nMade with parp: {share}.",
        f"## Use\n\n{_USE[_use(metadata, target)]}",
        "## Sparsity\n\n"
        + (
            f"{count:,} weights of {total:,} are pruned, and zero in this file. Runtimes compute with zeros as with "
            "any other number: it is as large and as fast as the dense model."
            if count
            else "The model is dense."
        ),
        f"## Training\n\n{_training(metadata, method)}",
        f"## Error rates\n\n{_table_of(results)}",
        f"## Provenance\n\n{_provenance(metadata, lineage)}",
    ]
    return "\n\n".join(sections) + "\n"


def write_card(path: Path, text: str) -> bool:
    """Write it, unless there is a card that parp did not write; returns whether it was written."""
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    write_text(path, text)
    return True


def _use(metadata: Metadata, target: str) -> str:
    if target == "torchaudio" or metadata.vocabulary is not None:
        return target
    return "encoder" if metadata.task is None else "classes"


def _header(metadata: Metadata, target: str, name: str, sparse: bool, results: Iterable[Result]) -> str:
    recipe = metadata.recipe or {}
    speech = metadata.architecture.get("kind", "speech") == "speech"
    values: dict[str, Any] = {"library_name": "transformers" if target == "hf" else "torchaudio"}
    if metadata.task is not None:
        values["pipeline_tag"] = "automatic-speech-recognition" if speech else "text-classification"
    values["tags"] = [*(["speech"] if speech else []), "parp", *(["pruned", "sparse"] if sparse else [])]
    model = recipe.get("model")
    if isinstance(model, str) and huggingface.HUB_NAME.fullmatch(model) and not Path(model).exists():
        values["base_model"] = model
    listed = [
        {
            "task": {"type": "automatic-speech-recognition"},
            "dataset": {"name": result.corpus, "type": result.corpus, "split": result.split},
            "metrics": [{"type": result.metric.lower(), "value": round(100 * result.rate, 2), "name": result.decoding}],
        }
        for result in results
    ]
    if listed:
        values["model-index"] = [{"name": name, "results": listed}]
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + "---"


def _training(metadata: Metadata, method: str | None) -> str:
    recipe = metadata.recipe or {}
    data, training = recipe.get("data", {}), recipe.get("training", {})
    rows = [
        ("method", method),
        ("began from", _base_name(recipe.get("model"))),
        ("data", data.get("corpus")),
        ("manifest", _base_name(data.get("manifest"))),
        ("training split", data.get("train")),
        ("validation split", data.get("valid")),
        ("updates", training.get("updates")),
        ("seed", metadata.seed),
    ]
    told = [(key, value) for key, value in rows if value is not None]
    if not told or method is None:
        return "It was not trained by parp."
    return _rows(("", ""), [(key, f"{value}") for key, value in told])


def _base_name(path: Any) -> str | None:
    """A file's name without its folder; names of a hub stay whole."""
    if path is None:
        return None
    return Path(path).name if Path(path).is_absolute() or Path(path).suffix else str(path)


def _table_of(results: Sequence[Result]) -> str:
    if not results:
        return "None were measured: `parp eval` writes them beside the checkpoint, and the next export lists them."
    return _rows(
        ("corpus", "split", "metric", "value", "95 % interval", "utterances", "decoding"),
        [
            (
                result.corpus,
                result.split,
                result.metric,
                f"{result.rate:.2%}",
                "–" if result.interval is None else f"{result.interval[0]:.2%} to {result.interval[1]:.2%}",
                f"{result.utterances:,}",
                result.decoding,
            )
            for result in results
        ],
    )


def _provenance(metadata: Metadata, lineage: Sequence[Parent]) -> str:
    files = _rows(
        ("stage", "file", "SHA-256"), [(one.stage, Path(one.file).name, f"`{one.sha256}`") for one in lineage]
    )
    versions = ", ".join(f"{name} {version}" for name, version in metadata.versions.items())
    return f"The files that it was made from, oldest first, the exported checkpoint last:\n\n{files}" + (
        f"\n\nThe checkpoint was written with {versions}." if versions else ""
    )


def _rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def card_path(out: Path) -> Path:
    """Where the card of an export is: in its folder, or beside its file under the file's name."""
    return out / CARD if out.is_dir() else out.with_suffix(".md")


def card_beside(job: Job) -> Path | None:
    """Write the card of what a job has written; None where a card of one's own was kept."""
    metadata, masks = job.content.metadata, job.content.masks
    lineage = checkpoint.lineage(job.source, metadata)
    method = (metadata.recipe or {}).get("pruning", {}).get("method")
    known = all_specs().get(method)  # not a method of one's own, in a process that has not registered it
    text = card(
        metadata,
        target=job.target,
        method=method if known is None else f"{method}: {known.description}",
        pruned=(count_pruned(masks), count_all(masks)),
        lineage=lineage,
        results=results_of(job.source.parent, lineage[-1].sha256),
    )
    path = card_path(job.out)
    return path if write_card(path, text) else None
