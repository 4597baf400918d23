"""An update of fine-tuning BERT-base beside transformers' Trainer + torch.nn.utils.prune: the same weights and masks.

    python -m tests.benchmarks.bench_text [--batch 8 32] [--precision float32 bfloat16] [--rounds 3] [--threads 1]

Both sides are the loops that people run: `parp finetune` by method mpi, and `Trainer.train()` over a model whose
matrices are under torch.nn.utils.prune, with the same random weights, masks, texts of 128 tokens, dropout (0.1),
optimizer (fused AdamW), rate and clipping. They take turns, each time in a process of its own, which makes three
updates; the first is to warm up. A time is from the end of an update to the end of the next, reading of texts
included; memory is the highest during the run, beyond what was there before the model was built (Linux).

Without dropout both must find the same losses; this is checked first. `--model tiny` is to try the script. It needs
accelerate, which Trainer asks for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.utils import prune

from parp_cli.config.classification import TextRecipe
from parp_cli.config.load import recipe_from_dict
from parp_cli.models.sources.load import load_encoder
from parp_cli.pruning.select import magnitude_masks
from parp_cli.stages.finetune import finetune
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.benchmarks.bench_training import high_water

LENGTH, SPARSITY, RATE, UPDATES = 128, 0.5, 2e-5, 3
SIZES: dict[str, dict[str, int]] = {
    "base": {},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}


class Watch:
    """Wall and processor seconds (of all threads) from the end of an update to the end of the next, and losses."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.losses: list[float] = []

    def ends_update(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> list[tuple[float, float]]:
        pairs = zip(self.ends, self.ends[1:], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def make_inputs(folder: Path, model: str, batch: int, dropout: float) -> None:
    """A random BERT with a tokenizer of made-up words, and as many texts as an update has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    config = transformers.BertConfig(**SIZES[model], hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    words = [*special, *(f"w{index}" for index in range(config.vocab_size - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{token.strip('[]').lower()}_token": token for token in special}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder / "model")
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "model")
    drawn = torch.randint(len(special), len(words), (batch, LENGTH - 2), generator=torch.Generator().manual_seed(0))
    lines = [f"{' '.join(words[index] for index in row)}\t{place % 2}\n" for place, row in enumerate(drawn.tolist())]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "".join(lines if split == "train" else lines[:2]))


class _Watching(Observer):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def update_ends(self, run: TrainingRun) -> None:
        self.watch.ends_update()


def ours(folder: Path, batch: int, precision: str, watch: Watch) -> None:
    """`parp finetune`."""
    values = {
        "task": "classification",
        "model": str(folder / "model"),
        "data": {"root": str(folder)},
        "pruning": {"method": "mpi", "sparsity": SPARSITY, "biases": False},
        "training": {
            "updates": UPDATES,
            "batch_size": batch,
            "max_length": LENGTH,
            "learning_rate": RATE,
            "warmup": 0.0,
            "precision": precision,
            "validate_every": UPDATES,
        },
    }
    with observing(_Watching(watch)):
        finetune(recipe_from_dict(values, (), kind=TextRecipe), run=folder / "run")
    events = [json.loads(line) for line in (folder / "run" / "finetune.jsonl").read_text().splitlines()]
    watch.losses = [event["loss"] for event in events if event["event"] == "update"]


def peer(folder: Path, batch: int, precision: str, watch: Watch) -> None:
    """transformers' Trainer, with prune's masks."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    rows = [line.split("\t") for line in (folder / "train.tsv").read_text().splitlines()[1:]]
    texts = tokenizer([text for text, _ in rows])
    items = [
        {name: texts[name][index] for name in texts} | {"labels": int(label)} for index, (_, label) in enumerate(rows)
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")
    weights = load_encoder(str(folder / "model")).architecture.build(outputs=2).prunable(biases=False)
    found = {name: model.get_parameter(name).detach() for name in weights}
    del weights
    masks = magnitude_masks(found, round(SPARSITY * sum(weight.numel() for weight in found.values())))
    for name in found:
        prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", masks[name])
    del found, masks

    class Watching(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.ends_update()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                watch.losses.append(float(logs["loss"]))

    settings = transformers.TrainingArguments(
        output_dir=str(folder / "peer"),
        max_steps=UPDATES,
        per_device_train_batch_size=batch,
        learning_rate=RATE,
        max_grad_norm=1.0,
        bf16=precision == "bfloat16",
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )
    collate = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(
        model=model, args=settings, train_dataset=items, data_collator=collate, callbacks=[Watching()]
    )
    trainer.train()


def measure(side: str, model: str, batch: int, precision: str, dropout: float) -> dict[str, Any]:
    """One side in this process."""
    import transformers.models.bert.modeling_bert  # noqa: F401  # code is nobody's memory

    run, watch = {"parp": ours, "Trainer": peer}[side], Watch()
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name), model, batch, dropout)
        memory = high_water(lambda: run(Path(name), batch, precision, watch))
    return {"seconds": watch.seconds(), "losses": watch.losses, "memory": memory}


def measured_apart(threads: int, *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_text", "--measure", json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # one side, in a process of its own
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(*options.measure)))
        return
    sides = ("Trainer", "parp")
    theirs, mine = (
        measured_apart(options.threads, side, options.model, options.batch[0], "float32", 0.0)["losses"]
        for side in sides
    )
    # The second update follows the first step; their schedules differ from there by one part in the number of updates.
    differ = max(abs(a - b) for a, b in zip(theirs[:2], mine[:2], strict=True))
    print(f"without dropout, losses of the first two updates differ by {differ:.1e} (of {theirs[0]:.4f})")
    assert differ < 1e-3, (theirs, mine)
    print(f"\n| {options.model}, {options.threads} threads | s per update | processor s | texts / s | peak GB |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    for precision in options.precision:
        for batch in options.batch:
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side in sides:
                    one = measured_apart(options.threads, side, options.model, batch, precision, 0.1)
                    found[side].append(one)
            medians = {}
            for side, runs in found.items():
                walls, processors = zip(*(pair for one in runs for pair in one["seconds"]), strict=True)
                memory = statistics.median(one["memory"] for one in runs)
                medians[side] = (statistics.median(walls), statistics.median(processors), memory)
                wall, processor, _ = medians[side]
                print(
                    f"| {precision}, batch {batch}, {side} | {wall:.2f} | {processor:.2f} | {batch / wall:.2f} |"
                    f" {memory / 1e9:.2f} |"
                )
            ratios = [a / b for a, b in zip(*(medians[side] for side in sides), strict=True)]
            print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} | | {ratios[2]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
