"""What re-pruning adds to a fine-tuning run's time: updates and re-prunings timed in turn, in one process.

    python tests/benchmarks/bench_repruning.py [--base]

prints, for the bundled encoder under recipes/mini/10min.yaml and with --base for wav2vec 2.0 base, the median seconds
of an update and of a re-pruning (selection, zeroing, counting what was revived by layer), and the share that re-pruning
adds at the published interval. Base has random weights, and updates of 16 s of noise: the published 1,600 s would take
a hundred times as long, and re-pruning would not.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from parp_cli.models.speech.config import ARCHITECTURES, build
from parp_cli.models.speech.forward import encode
from parp_cli.models.speech.prunable import layers_of, prunable_parameters
from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.patterns import GLOBAL
from parp_cli.pruning.pruner import Pruner

_SECONDS, _FRAMES_A_SECOND = 16, 50
_INTERVAL = 50
_LABELS = 32


def measure(name: str, rounds: int) -> tuple[float, float]:
    """Median seconds of an update, and of a re-pruning, of a network that PARP prunes by half."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    model = build(architecture, vocabulary_size=_LABELS)
    model.feature_extractor.requires_grad_(False)  # its features are kept, as in a run
    weights: dict[str, Tensor] = dict(prunable_parameters(model))
    settings = Settings(sparsity=0.5, schedule=Schedule(interval=1, updates=rounds), layers=layers_of(weights))
    pruner = Pruner(
        weights,
        GLOBAL.masks(weights, 0.5, {}),
        method=spec_of("parp").build(settings),
    )
    pruner.start()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    features = torch.randn(1, _SECONDS * _FRAMES_A_SECOND, model.encoder.feature_projection.projection.in_features)
    lengths = torch.tensor([features.shape[1]])
    updates, reprunings = [], []
    for update in range(1, rounds + 1):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        encode(model, features, lengths).square().mean().backward()
        pruner.before_step(update)
        optimizer.step()
        done = time.perf_counter()
        assert pruner.after_step(update, optimizer) is not None
        reprunings.append(time.perf_counter() - done)
        updates.append(done - began)
    return statistics.median(updates), statistics.median(reprunings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", action="store_true", help="also wav2vec 2.0 base, some minutes")
    names = ["mini", "wav2vec2-base"] if parser.parse_args().base else ["mini"]
    print(f"{'':14}{'update of 16 s':>16}{'re-pruning':>14}{f'added, every {_INTERVAL}':>18}")
    for name in names:
        update, repruning = measure(name, rounds=5 if name == "wav2vec2-base" else 20)
        print(f"{name:14}{update:14.3f} s{repruning:12.4f} s{repruning / (_INTERVAL * update):18.3%}")


if __name__ == "__main__":
    main()
