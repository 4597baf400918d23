"""The fake CUDA device refuses what CUDA refuses, notes what makes the host wait, and has a CPU's values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from parp_cli.models.speech.dropout import on_cpu
from tests.fake_cuda import CUDA, fake_cuda, value_of


class BackwardByOneDnn(torch.autograd.Function):
    """A linear layer whose derivative alone is of the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return torch.ops.mkldnn._linear_pointwise(gradient, weight.T, None, "none", [], ""), None


def test_a_derivative_that_is_not_of_cuda_is_refused() -> None:
    with fake_cuda():
        x = torch.ones(4, 8, device=CUDA, requires_grad=True)
        loss = BackwardByOneDnn.apply(x, torch.ones(3, 8, device=CUDA)).sum()
        with pytest.raises(NotImplementedError, match="_linear_pointwise' with arguments from the 'CUDA' backend"):
            loss.backward()


class Faulty(nn.Module):
    """A linear layer with a fault of one kind, or none."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        match self.fault:
            case "a tensor of the CPU":
                y = y + torch.ones(8)
            case "a value":
                y = y * y.sum().item()
            case "memory that is on the device, pinned":
                y = y + y.detach().pin_memory().to(x.device)
            case "oneDNN":
                y = torch.ops.mkldnn._linear_pointwise(x, self.linear.weight, self.linear.bias, "none", [], "")
            case "a float32 bias":
                with torch.autocast("cuda", enabled=False):
                    y = torch.addmm(self.linear.bias, x.bfloat16(), self.linear.weight.bfloat16().T)
            case "a float32 bias of attention":
                with torch.autocast("cuda", enabled=False):
                    query = y.bfloat16()[None, None]
                    bias = torch.zeros(len(x), len(x), device=x.device)
                    y = scaled_dot_product_attention(query, query, query, bias)[0, 0]
        return y


REFUSED = {
    "a tensor of the CPU": (RuntimeError, "same device"),
    "memory that is on the device, pinned": (RuntimeError, "cannot pin"),
    "oneDNN": (NotImplementedError, "_linear_pointwise' with arguments from the 'CUDA' backend"),
    "a float32 bias": (RuntimeError, "dtype"),
    "a float32 bias of attention": (RuntimeError, "invalid dtype for bias"),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("fault", REFUSED)
def test_what_cuda_refuses(fault: str, gradients: bool) -> None:
    kind, words = REFUSED[fault]
    with fake_cuda(), torch.autocast("cuda", torch.bfloat16), torch.set_grad_enabled(gradients):
        module = Faulty(fault).to(CUDA)
        with pytest.raises(kind, match=words):
            module(torch.ones(4, 8, device=CUDA))


def test_a_value_that_the_host_reads_is_noted_with_its_place() -> None:
    with fake_cuda() as device:
        x = torch.ones(4, 8, device=CUDA)
        Faulty().to(CUDA)(x)
        before = len(device.waits)
        Faulty("a value").to(CUDA)(x)
    assert before == 2  # the copies of weight and bias
    assert [wait for wait in device.waits if "reads a value" in wait] == [device.waits[-1]]
    assert "_local_scalar_dense" in device.waits[-1]
    assert "Faulty.forward" in device.waits[-1]


WAITS: dict[str, Callable[[Tensor], object]] = {
    "a branch": lambda x: 1 if x.any() else 0,
    "a number": lambda x: float(x.sum()),
    "a copy": lambda x: x.cpu(),
    "a copy that does not block": lambda x: x.to("cpu", non_blocking=True),  # which may not be read yet
    "a list": lambda x: x.tolist(),
    "places": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "selected": lambda x: x.masked_select(x > 0),
    "assigned by a mask": lambda x: x.__setitem__(x > 0, torch.ones(4, device=CUDA)),
    "distinct values": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "counts": lambda x: x.long().bincount(),
    "new values": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "pageable memory": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "pinned memory, blocking": lambda x: torch.ones(3).pin_memory().to(x.device),
    "indices of the CPU": lambda x: x[torch.tensor([0, 1])],
    "a list of indices": lambda x: x[[0, 1]],
}


@pytest.mark.parametrize("name", WAITS)
def test_what_makes_the_host_wait(name: str) -> None:
    with fake_cuda() as device:
        WAITS[name](torch.ones(4, device=CUDA))
    assert len(device.waits) == 1
    assert "test_fake_cuda.py" in device.waits[0]


NO_WAITS: dict[str, Callable[[Tensor], object]] = {
    "pinned memory": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "a number": lambda x: x * 2.5 + torch.tensor(3.0),
    "filled by a mask": lambda x: x.masked_fill(x > 0, 1.0),
    "a mask that is set to a number": lambda x: x.__setitem__(x > 0, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "indices": lambda x: x[torch.arange(2, device=x.device)],
    "a slice": lambda x: x[1:3].sum(),
    "counted repeats": lambda x: x.repeat_interleave(x.long(), output_size=4),
    "of the CPU": lambda x: torch.ones(3)[torch.ones(3) > 0].tolist(),
}


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_does_not(name: str) -> None:
    with fake_cuda() as device:
        NO_WAITS[name](torch.ones(4, device=CUDA))
    assert device.waits == []


def test_a_generator_of_the_cpu_draws_nothing_on_the_device() -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=CUDA, generator=torch.Generator())


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_gradient_of_ctc_is_in_no_fixed_order(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    try:
        with fake_cuda() as device:
            logits = torch.randn(6, 1, 3).to(CUDA).requires_grad_()
            lengths = torch.tensor([6]), torch.tensor([2])
            loss = nn.functional.ctc_loss(
                logits.log_softmax(-1), torch.tensor([[1, 2]]).to(CUDA), *lengths, reduction="sum"
            )
            if deterministic:
                with pytest.raises(RuntimeError, match="deterministic"):
                    loss.backward()
            else:
                loss.backward()
                assert [wait.split()[0] for wait in device.waits[-2:]] == ["ctc_loss", "aten._ctc_loss_backward.Tensor"]
    finally:
        torch.use_deterministic_algorithms(False)


def test_cumulative_sums_of_floats_are_in_no_fixed_order() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with fake_cuda():
            x = torch.ones(3, device=CUDA)
            assert value_of(x.long().cumsum(0)).tolist() == [1, 2, 3]
            with pytest.raises(RuntimeError, match="deterministic"):
                x.cumsum(0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_products_in_float32_are_noted() -> None:
    with fake_cuda() as device:
        module, x = Faulty().to(CUDA), torch.ones(4, 8, device=CUDA)
        with torch.autocast("cuda", torch.bfloat16):
            module(x).sum().backward()
        assert device.float32_products == []
        module(x)
    assert len(device.float32_products) == 1
    assert "Faulty.forward" in device.float32_products[0]


def test_the_device_is_not_the_cpu() -> None:
    with fake_cuda():
        assert not on_cpu(torch.ones(1, device=CUDA))
        assert on_cpu(torch.ones(1))


class Block(nn.Module):
    """Operators of many kinds, some of which torch takes apart, and one that keeps a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=1, groups=2), dim=2)
        self.norm = nn.LayerNorm(8)
        self.embedding = nn.Embedding(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.conv(x.transpose(1, 2)).transpose(1, 2))
        x = x + self.embedding(torch.arange(x.shape[1], device=x.device) % 5)
        heads = x.unflatten(2, (2, 4)).transpose(1, 2)
        x = scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        result: Tensor = self.out(nn.functional.gelu(x).masked_fill(x > 1, 0.0)).log_softmax(-1)
        return result


@pytest.mark.parametrize("recomputed", [False, True])
def test_values_and_gradients_are_those_of_the_cpu(recomputed: bool) -> None:
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 6, 8)

    def loss_of(module: Any, x: Tensor) -> Tensor:
        made = checkpoint(module, x, use_reentrant=False) if recomputed else module(x)
        labels = torch.ones(12, dtype=torch.long, device=x.device)
        return nn.functional.nll_loss(made.flatten(0, 1), labels) + made[0].square().mean()

    expected = loss_of(block, x)
    expected.backward()
    gradients = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    with fake_cuda():
        module = block.to(CUDA)
        for _ in range(2):  # they add up
            loss = loss_of(module, x.to(CUDA))
            loss.backward()
        torch.testing.assert_close(value_of(loss), expected.detach())
        found = [value_of(parameter.grad) for parameter in module.parameters() if parameter.grad is not None]
        assert all(parameter.grad.device == CUDA for parameter in module.parameters() if parameter.grad is not None)
    torch.testing.assert_close(found, [2 * gradient for gradient in gradients if gradient is not None])
    assert len(found) == len(gradients)
