"""Products of 2:4 matrices by a GPU's sparse tensor cores, beside the same dense in bfloat16.

    python tests/benchmarks/bench_semi_structured.py [--models base large] [--seconds 60 240] [--device cuda]

Each kind of matrix of a Transformer layer, with a batch of so many seconds of speech, as `parp export --to sparse`
measures it: with the conversion of inputs and of dense weights that recognition in bfloat16 makes. On a CPU, to try the
script, dense alone.
"""

import argparse

import torch

from parp_cli.models.speech import kernels
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.models.speech.kernels import DENSE, SEMI_STRUCTURED, available, fastest_of_rounds
from parp_cli.pruning.patterns import Pattern
from parp_cli.runtime.device import autocast

MODELS = {"base": "wav2vec2-base", "large": "wav2vec2-large-lv60k", "1b": "xls-r-1b", "2b": "xls-r-2b"}
FRAMES = 50
"""Of a second."""


@torch.inference_mode()
def seconds_of(outputs: int, inputs: int, frames: int, device: torch.device) -> dict[str, float]:
    """How long a product of a 2:4 matrix with so many frames takes, by the kernels that the device has for it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator).to(device)
    weight *= Pattern.parse("2:4").masks({"weight": weight}, 0.5, {})["weight"]
    bias, x = torch.zeros(outputs, device=device), torch.randn(1, frames, inputs, generator=generator).to(device)
    found = {}
    with autocast("bfloat16" if device.type == "cuda" else "float32", device):
        for kind in (DENSE, SEMI_STRUCTURED):
            if kind in available(device):
                product = kernels._BUILD[kind](weight, bias)
                found[kind] = fastest_of_rounds(lambda product=product: product(x), device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["base", "large", "1b"])
    parser.add_argument("--seconds", nargs="+", type=int, default=[60, 240], help="of speech in a batch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"| {where} | inputs | outputs | speech, s | dense, us | 2:4, us | times as fast |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.models:
        architecture = ARCHITECTURES[MODELS[name]]
        width, inner = architecture.width, architecture.sizes_of_layer(0)[2]
        for kind, outputs, inputs in (("q_proj", width, width), ("fc1", inner, width), ("fc2", width, inner)):
            for seconds in options.seconds:
                found = seconds_of(outputs, inputs, FRAMES * seconds, device)
                dense, other = found[DENSE], found.get(SEMI_STRUCTURED, float("nan"))
                print(
                    f"| {name}, {kind} | {inputs} | {outputs} | {seconds} | {dense * 1e6:,.1f} | {other * 1e6:,.1f} |"
                    f" {dense / other:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
