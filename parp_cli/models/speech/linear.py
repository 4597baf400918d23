"""Linear layers: on a CPU by oneDNN, where nothing is trained.

torch has MKL multiply float32 matrices, which uses only half of the vector registers of processors that are not
Intel's: on a Zen 5, oneDNN is 2.2 times as fast. Both are as exact, but sum in another order.

D inputs, E outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from parp_cli.models.speech.dropout import on_cpu


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, then_gelu: bool = False) -> Tensor:
    """(…, E) of x (…, D), a weight (E, D) and a bias (E,), as `torch.nn.functional.linear`; with GELU after it if
    asked."""
    if _by_onednn(x, weight):
        activation = ("gelu", "none") if then_gelu else ("none", "")
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation[0], [], activation[1])
        return result
    result = nn.functional.linear(x, weight, bias)
    return gelu(result) if then_gelu else result


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        on_cpu(x)
        and not torch.is_grad_enabled()
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Linear(nn.Linear):
    """torch's, by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, E) of (…, D)."""
        return linear(input, self.weight, self.bias)
