"""An update of CTC fine-tuning beside transformers + torch.nn.utils.prune: the same weights, masks and mathematics.

    python tests/benchmarks/bench_training.py [--model tiny|base|large|1b] [--precision float32 tf32 bfloat16]
                                              [--dropout peer|paper] [--utterances 4] [--compile] [--rounds 5]
                                              [--device auto]

The peer is transformers' Wav2Vec2ForCTC with its front end frozen, its prunable weights under torch.nn.utils.prune and
a fused AdamW; ours is what `parp finetune` does: front-end features kept, masks by the pruner's method "fixed", the
same AdamW, with --compile its layers compiled. Each hears some utterances of 10 s of noise. First both must find the
same loss and the same gradients, in float32 and without dropout; then they take turns. The dropouts are transformers'
defaults, 0.1 everywhere ("peer"), or those of the wav2vec 2.0 paper's fine-tuning, 0.1 inside the feed-forward blocks
alone ("paper").

It prints for each precision the updates and the seconds of audio per second (medians of the rounds; processor seconds
are of all threads, and say more where the machine is busy with something else), the peak memory of weights, masks,
optimizer and two updates (each side in a process of its own), the share of the arithmetic limit, and where our time
goes. The limit is the time that the products of the encoder would take at the rate at which this machine multiplies
matrices of the feed-forward layer's shape, measured between the rounds; the products are counted by
torch.utils.flop_counter on the peer's encoder. On a CUDA device whose peak is known it also prints the model-FLOP
utilisation, and how much of our update the device computes, how much it waits between kernels, and when the host had
submitted all; memory is then the device's, and every measured update waits for it. The model "tiny", of two layers, is
to try the script.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from parp_cli.models.sources.huggingface import config_of, names_of
from parp_cli.models.speech.config import ARCHITECTURES as PUBLISHED
from parp_cli.models.speech.config import Architecture, build, frames
from parp_cli.models.speech.forward import compile_layers, encode, front_end, pad
from parp_cli.models.speech.prunable import prunable_parameters
from parp_cli.models.speech.waveform import normalize
from parp_cli.pruning.methods import Method, Schedule, Settings
from parp_cli.pruning.patterns import GLOBAL
from parp_cli.pruning.pruner import Pruner
from parp_cli.runtime.device import tensor_cores

ARCHITECTURES = PUBLISHED | {"tiny": replace(PUBLISHED["wav2vec2-base"], name="tiny", layers=2)}
MODELS = {"tiny": "tiny", "base": "wav2vec2-base", "large": "wav2vec2-large-lv60k", "1b": "xls-r-1b"}
SECONDS, SAMPLES, LABELS, VOCABULARY = 10, 160_000, 120, 32
SPARSITY, RATE = 0.5, 1e-6
DROPOUTS = {"none": (0.0, 0.0), "peer": (0.1, 0.1), "paper": (0.0, 0.1)}
"""Of hidden states and attention weights, and inside the feed-forward blocks."""

_HOPPER = {"float32": 67e12, "tf32": 494e12, "bfloat16": 989e12}
PEAKS = {"H100": _HOPPER, "H200": _HOPPER, "A100": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12}}
"""Dense operations per second by the name of a CUDA device and by precision, as makers state them (of SXM cards)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained: a model by its name, on a device, in a precision, with one of the `DROPOUTS`, on so many
    utterances an update; and whether our layers are compiled."""

    name: str
    device: str
    utterances: int
    precision: str = "float32"
    dropout: str = "none"
    compiled: bool = False

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.name]


class Side:
    """One of the two: `loss` of the batch, and a whole `update`."""

    model: Any
    optimizer: torch.optim.Optimizer

    def __init__(self, case: Case) -> None:
        self.case, self.device, self.precision = case, case.device, case.precision
        generator = torch.Generator().manual_seed(0)
        self.waveforms = torch.randn(case.utterances, SAMPLES, generator=generator).to(case.device)
        self.labels = torch.randint(1, VOCABULARY, (case.utterances, LABELS), generator=generator).to(case.device)

    def optimize(self) -> None:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)

    def logits(self) -> Tensor:
        raise NotImplementedError

    def loss(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.logits()
        likely = nn.functional.log_softmax(logits.float(), -1).transpose(0, 1)
        count = self.case.utterances
        lengths = torch.full((count,), logits.shape[1]), torch.full((count,), LABELS)
        return nn.functional.ctc_loss(likely, self.labels, *lengths, reduction="sum") / self.labels.numel()

    def update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def seconds(self) -> tuple[float, float]:
        """Wall and processor seconds (of all threads) of an update."""
        began, worked = time.perf_counter(), time.process_time()
        self.update()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began, time.process_time() - worked


class Ours(Side):
    """parp's update."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        torch.manual_seed(0)
        hidden, activation = DROPOUTS[case.dropout]
        architecture = case.architecture
        options = {"dropout": hidden, "attention_dropout": hidden, "activation_dropout": activation}
        self.model = build(architecture, vocabulary_size=VOCABULARY, **options).to(case.device).train()
        self.model.feature_extractor.requires_grad_(False)
        if case.compiled:
            compile_layers(self.model, torch.device(case.device))
        weights: dict[str, Tensor] = dict(prunable_parameters(self.model))
        method = Method(Settings(sparsity=SPARSITY, schedule=Schedule(interval=1, updates=1, final=False)))
        self.pruner = Pruner(weights, GLOBAL.masks(weights, SPARSITY, {}), method=method)
        self.pruner.start()
        self.optimize()
        with torch.no_grad():
            self.features, self.lengths = pad([front_end(self.model, architecture, one) for one in self.waveforms])
        self.done = 0

    def logits(self) -> Tensor:
        return encode(self.model, self.features, self.lengths)

    def update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.done += 1
        with record_function("masks"):
            self.pruner.before_step(self.done)
        self.optimizer.step()
        with record_function("masks"):
            self.pruner.after_step(self.done, self.optimizer)


class Peer(Side):
    """transformers' and torch.nn.utils.prune's, with our weights and masks."""

    def __init__(self, case: Case, weights: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        super().__init__(case)
        architecture = case.architecture
        self.model = peer_model(architecture, case.dropout)
        self.model.load_state_dict(names_of(weights, architecture), strict=False)
        self.model.freeze_feature_encoder()
        self.model.to(case.device).train()
        head = {"aux.weight": weights["aux.weight"]}  # by which `names_of` knows that these are of a model with a head
        for mask_name, mask in names_of(masks | head, architecture).items():
            path, _, parameter = mask_name.rpartition(".")
            if path != "lm_head":
                prune.custom_from_mask(self.model.get_submodule(path), parameter, mask)
        self.optimize()
        self.waveforms = torch.stack([normalize(one, architecture) for one in self.waveforms])

    def logits(self) -> Tensor:
        logits: Tensor = self.model(self.waveforms).logits
        return logits


def peer_model(architecture: Architecture, dropout: str) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    hidden, activation = DROPOUTS[dropout]
    config = config_of(architecture) | {
        "vocab_size": VOCABULARY,
        "hidden_dropout": hidden,
        "attention_dropout": hidden,
        "feat_proj_dropout": hidden,
        "activation_dropout": activation,
        # Neither drops what goes into the head, nor layers, nor masks features: parp has no such dropout.
        "final_dropout": 0.0,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
    }
    del config["model_type"]
    return Wav2Vec2ForCTC(Wav2Vec2Config(**config))


def make(side: str, case: Case) -> Side:
    """One side; for the peer, ours is built first and let go, for its weights and masks."""
    ours = Ours(case)
    if side == "ours":
        return ours
    return Peer(case, ours.model.state_dict(), ours.pruner.masks)


def check_same(case: Case) -> None:
    """Both sides find the same loss and gradients.

    Raises:
        AssertionError: they do not.
    """
    case = replace(case, utterances=min(case.utterances, 4), precision="float32", dropout="none", compiled=False)
    ours = Ours(case)
    masks = ours.pruner.masks
    peer = Peer(case, ours.model.state_dict(), masks)
    losses = []
    for side in (ours, peer):
        side.optimizer.zero_grad()
        loss = side.loss()
        loss.backward()
        losses.append(loss.item())
    ours.pruner.before_step(1)
    gradients = {weight: parameter.grad for weight, parameter in ours.model.named_parameters() if weight in masks}
    head = {"aux.weight": ours.model.aux.weight}
    error = total = 0.0
    for weight, gradient in names_of(gradients | head, case.architecture).items():
        if not weight.startswith("lm_head"):
            other = peer.model.get_parameter(f"{weight}_orig").grad
            error += float((gradient - other).square().sum())
            total += float(other.square().sum())
    difference = (error / total) ** 0.5
    print(f"without dropout: loss {losses[0]:.6f}, the peer's {losses[1]:.6f}; gradients differ by {difference:.1e}")
    assert abs(losses[0] - losses[1]) < 1e-4 * losses[1], losses
    assert difference < 1e-3, difference


def operations(case: Case) -> int:
    """Operations of an update's matrix products and convolutions, the frozen front end aside."""
    architecture = case.architecture
    length = frames(architecture, SAMPLES)
    with torch.device("meta"):
        model = peer_model(architecture, "none")
        features = torch.empty(case.utterances, length, architecture.conv_layers[-1][0])
        with FlopCounterMode(display=False) as counter:
            hidden, _ = model.wav2vec2.feature_projection(features)
            model.lm_head(model.wav2vec2.encoder(hidden).last_hidden_state).sum().backward()
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for operator, count in counts.items() if "convolution" not in operator)
    # The counter takes the backward pass of a convolution for one without groups.
    weight = model.wav2vec2.encoder.pos_conv_embed.conv.weight
    return products + 3 * 2 * case.utterances * length * weight.numel()


def matrix_rate(case: Case) -> float:
    """Operations per second of the feed-forward layer's product."""
    rows, width, inner = case.utterances * 499, case.architecture.width, case.architecture.sizes_of_layer(0)[2]
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    values = torch.randn(rows, width, dtype=dtype, device=case.device)
    weight = torch.randn(inner, width, dtype=dtype, device=case.device)
    best, calls = float("inf"), 20 if case.device == "cuda" else 1  # there one is too short for the clock
    for _ in range(6):
        synchronize(case.device)
        began = time.perf_counter()
        for _ in range(calls):
            values @ weight.t()
        synchronize(case.device)
        best = min(best, (time.perf_counter() - began) / calls)
    return 2 * rows * width * inner / best


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def compare(case: Case, rounds: int) -> Ours:
    """Print one precision's lines; our side, to look into."""
    ours = Ours(case)
    peer = Peer(case, ours.model.state_dict(), ours.pruner.masks)
    times: dict[str, list[tuple[float, float]]] = {"peer": [], "ours": []}
    rates = []
    for number in range(rounds + 1):
        rates.append(matrix_rate(case))
        found = {"peer": peer.seconds(), "ours": ours.seconds()}
        if number > 0:  # the first is to warm up
            for side, seconds in found.items():
                times[side].append(seconds)
    median = {side: statistics.median(wall for wall, _ in values) for side, values in times.items()}
    memory = {side: measured_apart(side, case) for side in times}
    precision, device = case.precision, case.device
    for side, label in (("peer", "transformers + prune"), ("ours", "parp, compiled" if case.compiled else "parp")):
        walls, processor = zip(*times[side], strict=True)
        print(
            f"| {precision}, {label} | {median[side]:.3g} | {min(walls):.3g} to {max(walls):.3g} |"
            f" {statistics.median(processor):.3g} | {1 / median[side]:.3g} |"
            f" {case.utterances * SECONDS / median[side]:.4g} | {memory[side] / 1e9:.2f} |",
            flush=True,
        )
    pairs = list(zip(times["peer"], times["ours"], strict=True))
    ratios = [theirs / mine for (theirs, _), (mine, _) in pairs]
    of_processor = statistics.median(theirs / mine for (_, theirs), (_, mine) in pairs)
    print(
        f"| {precision}, ratio | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        f" {of_processor:.2f} | | | {memory['ours'] / memory['peer']:.2f} |"
    )
    counted, rate = operations(case), statistics.median(rates)
    limit = counted / rate
    print(
        f"  {counted / 1e9:,.0f} billion operations at {rate / 1e9:,.0f} billion a second: {limit:.3g} s;"
        f" share of this limit: parp {limit / median['ours']:.0%}, peer {limit / median['peer']:.0%}"
    )
    if device == "cuda":
        card = torch.cuda.get_device_name()
        peaks = next((values for key, values in PEAKS.items() if key in card), None)
        if peaks is not None:
            shares = ", ".join(f"{side} {counted / seconds / peaks[precision]:.1%}" for side, seconds in median.items())
            print(f"  model-FLOP utilisation of {card}: {shares}")
    return ours


def high_water(work: Callable[[], object]) -> int:
    """Bytes by which the resident set rises while `work` runs (Linux)."""

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest so far
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def memory_of(side: str, case: Case) -> int:
    """Peak bytes of two updates, from the building of the model on."""
    # Here, or the peer would also be charged for the code that is imported with its model.
    import transformers.models.wav2vec2.modeling_wav2vec2  # noqa: F401

    def work() -> None:
        one = make(side, case)
        if case.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            one.update()

    with tensor_cores(case.precision):
        if case.device == "cuda":
            work()
            return torch.cuda.max_memory_allocated()
        return high_water(work)


def measured_apart(side: str, case: Case) -> int:
    command = [sys.executable, __file__, "--memory-of", json.dumps([side, asdict(case)])]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@contextmanager
def named(module: nn.Module, part: str) -> Iterator[None]:
    """While inside, what a module does in its forward pass is under this name in profiles."""
    scopes: list[Any] = []

    def enter(*_: Any) -> None:
        scopes.append(record_function(part))
        scopes[-1].__enter__()

    handles = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(lambda *_: scopes.pop().__exit__(None, None, None)),
    ]
    yield
    for handle in handles:
        handle.remove()


PARTS = {
    "attention": ("aten::scaled_dot_product", "aten::_scaled_dot_product", "ScaledDotProduct"),
    "dropout": ("aten::native_dropout", "NativeDropout"),
    "loss": ("aten::_ctc_loss", "aten::ctc_loss", "CtcLoss", "aten::log_softmax", "LogSoftmax"),
    "optimizer": ("Optimizer.step",),
    "masks": ("masks",),
    "matrix products": ("mkldnn::_linear", "_Trained", "aten::mm", "aten::addmm", "aten::linear", "aten::bmm"),
}
"""By how the names of operations begin, or of what they are done for; all else is elementwise, norms and copies."""


def breakdown(ours: Ours) -> None:
    """Print where an update's time goes, by the profiler, which itself costs a little."""
    on_device = ours.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with (
        named(ours.model.encoder.transformer.pos_conv_embed, "positional"),
        profile(activities=activities, acc_events=True) as run,
    ):
        synchronize(ours.device)
        began = time.perf_counter()
        ours.update()
        submitted = time.perf_counter() - began
        synchronize(ours.device)
        wall = time.perf_counter() - began
    events = [event for event in run.events() if event.device_type == torch.autograd.DeviceType.CPU]
    numbers = {
        event.sequence_nr for event in events if event.sequence_nr >= 0 and "positional" in names_above(event, ())
    }

    def part_of(event: Any) -> str:
        names = names_above(event, numbers)
        if "positional" in names:
            return "positional convolution"
        for name in reversed(names):  # from the outermost
            for part, starts in PARTS.items():
                if name.startswith(starts):
                    return part
        return "elementwise, norms, copies"

    spent: Counter[str] = Counter()
    for event in events:
        spent[part_of(event)] += event.self_device_time_total if on_device else event.self_cpu_time_total
    total = sum(spent.values())
    if total == 0:
        print("  the profiler saw no work on the device: it may not be allowed to look", flush=True)
        return
    shares = ", ".join(f"{part} {time / total:.1%}" for part, time in spent.most_common())
    print(f"  where parp's {total / 1e6:.3g} s go: {shares}", flush=True)
    if on_device:
        on_gpu = [event for event in run.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [event for event in on_gpu if not event.is_user_annotation]  # not names of what they are for
        busy = covered((event.time_range.start, event.time_range.end) for event in kernels) / 1e6
        print(
            f"  of {wall:.3g} s the device computes {busy / wall:.1%}, in {len(kernels):,} kernels and copies, and"
            f" waits {1 - busy / wall:.1%}; the host had submitted all after {submitted / wall:.1%}",
            flush=True,
        )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of what spans, which may overlap, cover together."""
    length, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        length += max(0.0, last - max(first, end))
        end = max(end, last)
    return length


def names_above(event: Any, backward_of_positional: Any) -> list[str]:
    """Names of an event and of those it is part of, innermost first."""
    names = []
    while event is not None:
        names.append(event.name)
        if event.sequence_nr in backward_of_positional and event.name.startswith("autograd::engine"):
            names.append("positional")
        event = event.cpu_parent
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--precision", nargs="+", choices=("float32", "tf32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--dropout", choices=("peer", "paper"), default="peer")
    parser.add_argument("--utterances", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="compile our layers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)  # one side, in a process of its own
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        side, values = options.memory_of
        print(memory_of(side, Case(**values)))
        return
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    name = MODELS[options.model]
    case = Case(
        name=name,
        device=device,
        utterances=options.utterances,
        dropout=options.dropout,
        compiled=options.compile,
    )
    with tensor_cores("float32"):
        check_same(case)
    where = f"{device}, {options.threads} threads" if device == "cpu" else torch.cuda.get_device_name()
    heard = f"{options.utterances} x {SECONDS} s, dropout as {options.dropout}"
    print(
        f"\n| {name}, {where}, {heard} | s per update | from, to | processor s | updates / s | audio s / s | peak GB |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for precision in options.precision:
        with tensor_cores(precision):
            breakdown(compare(replace(case, precision=precision), options.rounds))


if __name__ == "__main__":
    main()
