"""A CUDA device without a GPU: what runs on it is checked as CUDA would, and has the values that a CPU computes.

Tensors on it are torch's fake tensors. Beside each is its value on the CPU, to which every operator is applied too, so
that whole stages run, branches that depend on values included. As on CUDA, operators raise where tensors are on two
devices, where they have no kernel for CUDA, where dtypes differ, and in deterministic mode where they are not.
What makes the host wait for the device is noted, and so are matrix products in float32. What it cannot show: the choice
of attention's fused kernels, since torch takes its plain one where there is no driver.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from parp_cli.data import audio

CUDA = torch.device("cuda", 0)

_aten = torch.ops.aten
_KERNELS = (
    "CUDA",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
)
_OF_CPUS = ("mkldnn", "quantized::", "_for_cpu")
"""In the names of operators that have kernels for CPUs alone, whatever this torch was built with."""

_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default)
_CTC = (_aten._ctc_loss.Tensor, _aten._ctc_loss_backward.Tensor)
_TAKES_CPU = (*_COPIES, *_INDEXED, *_CTC)
"""Operators that take tensors of both devices."""

_PRODUCTS = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution)

_NOT_DETERMINISTIC = (
    _aten._ctc_loss_backward,
    _aten.nll_loss2d_forward,
    _aten.put_,
    _aten.histc,
    _aten.median.dim,
    _aten.kthvalue,
    _aten.replication_pad1d_backward,
    _aten.reflection_pad1d_backward,
    _aten.upsample_linear1d_backward,
)
"""What speech and texts might meet of the operators that `torch.use_deterministic_algorithms` lists as raising."""


def _compress(weight: Tensor) -> Tensor:
    """What cuSPARSELt makes of a 2:4 matrix (E, D): D / 2 entries of each row, and two bits for the place of each, in
    D / 16 more."""
    groups = weight.view(len(weight), -1, 4)
    places = (groups == 0).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(-1).values
    kept = groups.gather(-1, places).flatten(1)
    fours = places.reshape(len(weight), -1, 4)
    bits = (fours << torch.tensor([0, 2, 4, 6])).sum(-1).to(torch.uint8)
    return torch.cat([kept, bits.contiguous().view(weight.dtype)], 1)


def _compressed_product(packed: Tensor, dense: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    """(E, N) of what `_compress` made of (E, D), times (D, N), plus a bias (E,)."""
    inputs = len(dense)
    kept, bits = packed[:, : inputs // 2], packed[:, inputs // 2 :].contiguous().view(torch.uint8)
    places = (bits[..., None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8) & 3).view(len(packed), -1, 2).long()
    groups = packed.new_zeros(len(packed), inputs // 4, 4)
    weight = groups.scatter_(-1, places, kept.reshape(len(packed), -1, 2)).flatten(1)
    made = weight.float() @ dense.float() + (0.0 if bias is None else bias.float()[:, None])
    return made.to(dense.dtype)


def _in_float32(convolution: Any) -> Any:
    def values(*args: Any, **kwargs: Any) -> Any:
        def wide(leaf: Any) -> Any:
            return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf

        def narrow(leaf: Any) -> Any:
            return leaf.bfloat16() if isinstance(leaf, Tensor) else leaf

        rounded = args[0].dtype == torch.bfloat16
        made = convolution(*tree_map(wide, args), **tree_map(wide, kwargs))
        return tree_map(narrow, made) if rounded else made

    return values


_ON_CPU = {
    _aten._cslt_compress.default: _compress,
    _aten._cslt_sparse_mm.default: _compressed_product,
    _aten.convolution.default: _in_float32(_aten.convolution.default),
    _aten.convolution_backward.default: _in_float32(_aten.convolution_backward.default),
}
"""Values of operators that have no kernel for CPUs, or in bfloat16 one that some CPUs compute wrong."""

_NO_FAKE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


class FakeCuda(FakeTensorMode):
    """Use it with `fake_cuda`.

    Attributes:
        operators: how many ran on the device.
        waits: what made the host wait for it, each with where in parp that was.
        float32_products: matrix products and convolutions of float32, likewise.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=False, allow_fallback_kernels=False)
        self.operators = 0
        self.waits: list[str] = []
        self.float32_products: list[str] = []
        self._inside = False  # an operator that torch takes apart
        self._thread = threading.get_ident()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if threading.get_ident() != self._thread:  # the state of a mode is one for all
            raise RuntimeError(f"{func} on the fake device, which only the thread that made it may use")
        kwargs = dict(kwargs or {})
        if self._inside or func.namespace == "prim":
            return super().__torch_dispatch__(func, types, args, kwargs)
        inputs = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if any(isinstance(leaf, torch.sparse.SparseSemiStructuredTensor) for leaf in inputs):
            return NotImplemented  # it calls operators of what it consists of
        fakes = [leaf for leaf in inputs if isinstance(leaf, FakeTensor)]
        device = kwargs.get("device")
        if not fakes and (device is None or torch.device(device).type != "cuda"):
            return func(*args, **kwargs)  # on the CPU
        if _has_kernel(func, "CompositeImplicitAutograd"):  # where gradients are off for good
            with self:
                return func.decompose(*args, **kwargs)
        if func in (_aten._use_cudnn_ctc_loss.Tensor, _aten._use_miopen_ctc_loss.Tensor):
            return False
        self.operators += 1
        _check(func, inputs, kwargs)
        if why := _wait(func, args, kwargs):
            self.waits.append(f"{func} ({why}) at {_place()}")
        if func.overloadpacket in _PRODUCTS and any(leaf.dtype == torch.float32 for leaf in fakes):
            self.float32_products.append(f"{func} at {_place()}")
        values = _ON_CPU.get(func, func)(
            *tree_map(_value, args), **tree_map(_value, {**kwargs, **({"device": "cpu"} if device else {})})
        )
        if not _stays(func, args, device):
            return values if func is not _aten.copy_.default else args[0]
        return self._placed(values, self._faked(func, types, args, kwargs), fakes)

    def _faked(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """What torch's fake tensors make of it; None where that depends on values."""

        def fake(leaf: Any) -> Any:
            return self.from_tensor(leaf) if isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor) else leaf

        self._inside = True
        try:
            return super().__torch_dispatch__(func, types, tree_map(fake, args), tree_map(fake, kwargs))
        except _NO_FAKE:
            return None
        finally:
            self._inside = False

    def _placed(self, values: Any, faked: Any, inputs: Sequence[FakeTensor]) -> Any:
        """The values as tensors of the device; those that are an input's are that input."""
        known = {id(_value(fake)): fake for fake in inputs}
        leaves, structure = tree_flatten(values)
        fakes = tree_flatten(faked)[0]
        found = []
        for index, value in enumerate(leaves):
            if not isinstance(value, Tensor):
                found.append(value)
            elif id(value) in known:
                found.append(known[id(value)])
            else:
                fake = fakes[index] if index < len(fakes) else None
                found.append(self._with_value(fake if all(fake is not one for one in inputs) else None, value))
        return structure.unflatten(found)

    def _with_value(self, fake: Any, value: Tensor) -> FakeTensor:
        if not isinstance(fake, FakeTensor) or fake.shape != value.shape:
            empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            fake = FakeTensor(self, empty, CUDA)
        elif fake.stride() != value.stride() and value._base is None:
            value = torch.empty_strided(fake.shape, fake.stride(), dtype=value.dtype).copy_(value)
        fake.value = value  # type: ignore[attr-defined]
        return fake


class _Functions(TorchFunctionMode):
    """What CUDA's kernels refuse of functions that torch takes apart, or does otherwise with tensors of other kinds."""

    def __init__(self, device: FakeCuda) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        waits = self._device.waits
        if func is torch.nn.functional.ctc_loss and args[0].device.type == "cuda":
            before = [*waits, f"ctc_loss (copies lengths from the host, wherever they are) at {_place()}"]
            loss = func(*args, **kwargs)
            waits[:] = before
            return loss
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, bias = args[0], kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            cast = query.device.type != "cuda" or torch.is_autocast_enabled("cuda")
            if not cast and bias is not None and bias.dtype not in (torch.bool, query.dtype):
                raise RuntimeError(f"invalid dtype for bias - should match query's dtype: {bias.dtype}")
        return func(*args, **kwargs)


def value_of(tensor: Tensor) -> Tensor:
    """A copy of a tensor on the CPU, for a test to look at; the device does not note it."""
    return _value(tensor.detach()).clone()


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Inside, the device is there, in this thread; what needs a driver is left out."""
    mode = FakeCuda()
    real_backward, real_id, numbers = torch.autograd.backward, torch._C._current_graph_task_id, count(1 << 30)
    running: list[int] = []

    def backward(tensors: Any, grad_tensors: Any = None, *rest: Any, **options: Any) -> None:
        if not isinstance(tensors, Tensor) or grad_tensors is not None:
            return real_backward(tensors, grad_tensors, *rest, **options)
        running.append(next(numbers))
        try:
            with torch.no_grad():
                _backward(tensors)
        finally:
            running.pop()
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "backward", backward)
        patch.setattr(torch._C, "_current_graph_task_id", lambda: running[-1] if running else real_id())
        patch.setattr(Tensor, "pin_memory", _pinned)
        patch.setattr("parp_cli.tasks.ctc.features._pinned", lambda tensor, _: _pinned(tensor))
        patch.setattr(torch.cuda, "synchronize", lambda *_: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 36, 1 << 36))
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "none")
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr(FakeTensor, "tolist", lambda self: self.cpu().tolist())
        reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # as fused kernels, not in float32
        audio._filter.cache_clear()
        try:
            with _Functions(mode), mode:
                yield mode
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
            audio._filter.cache_clear()


def _has_kernel(func: Any, key: str) -> bool:
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
    return found


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, FakeTensor) else leaf  # type: ignore[attr-defined]


def _pinned(tensor: Tensor) -> Tensor:
    """A copy that the device could fetch by itself. Raises as torch does for what is on the device already."""
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{tensor.dtype}' on {tensor.device}: only dense CPU tensors can be pinned")
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def _check(func: Any, inputs: Sequence[Tensor], kwargs: Any) -> None:
    """Raise what CUDA raises."""
    name, on_cpu = func.name(), [tensor for tensor in inputs if not isinstance(tensor, FakeTensor)]
    if func not in _TAKES_CPU and any(tensor.dim() > 0 for tensor in on_cpu):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got some on cpu, some on cuda")
    built_with = torch.version.cuda is None or any(_has_kernel(func, key) for key in _KERNELS)
    if not built_with or any(part in name for part in _OF_CPUS):
        raise NotImplementedError(f"Could not run '{name}' with arguments from the 'CUDA' backend")
    if (generator := kwargs.get("generator")) is not None and generator.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")
    if torch.are_deterministic_algorithms_enabled():
        adds_floats = func.overloadpacket is _aten.cumsum and any(map(torch.is_floating_point, inputs))
        if adds_floats or {func, func.overloadpacket} & {*_NOT_DETERMINISTIC}:
            raise RuntimeError(f"{name} does not have a deterministic implementation")


def _stays(func: Any, args: Any, device: Any) -> bool:
    """Whether an operator's result is on the device."""
    if func is _aten.copy_.default:
        return isinstance(args[0], FakeTensor)
    if device is not None:
        return torch.device(device).type == "cuda"
    return True


def _wait(func: Any, args: Any, kwargs: Any) -> str:
    """Why CUDA makes the host wait; empty where it does not."""
    if func in _COPIES:
        copied = args[1] if func is _aten.copy_.default else args[0]
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if isinstance(copied, FakeTensor):
            return "" if _stays(func, args, kwargs.get("device")) else "copies to the host"
        if func is _aten.copy_.default and copied.dim() == 0:
            return ""  # a number, which goes along with the call
        return "" if non_blocking and hasattr(copied, "pinned") else "copies from the host"
    if func in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            fills = func is not _aten.index.Tensor and args[2].numel() == 1
            return "" if fills else "counts what a mask chooses"
        return "copies indices from the host" if any(not isinstance(i, FakeTensor) for i in indices) else ""
    if func is _aten._ctc_loss_backward.Tensor:
        return "copies lengths from the host"
    if torch.Tag.data_dependent_output in func.tags or func is _aten.equal.default:
        return "reads a value"
    if torch.Tag.dynamic_output_shape in func.tags:
        return "" if kwargs.get("output_size") is not None else "has a size that depends on values"
    return ""


def _place() -> str:
    """The innermost line of parp, or else of whatever is not torch."""
    frame = sys._getframe(2)
    other = None
    while frame is not None:
        path, line = frame.f_code.co_filename, f"{frame.f_lineno} {frame.f_code.co_qualname}"
        if "parp_cli" in path:
            return f"{path[path.rindex('parp_cli') :]}:{line}"
        if other is None and "/torch/" not in path and path != __file__:
            other = f"{path.rpartition('/')[2]}:{line}"
        frame = frame.f_back  # type: ignore[assignment]
    return other or "?"


def _backward(loss: Tensor) -> None:
    """The backward pass of a loss. torch's own engine asks the driver for its streams."""
    order = _ordered(loss.grad_fn)
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {loss.output_nr: torch.ones_like(loss)}}
    while order:
        node = order.pop()
        own = gradients.pop(node, None)
        if own is None:
            continue
        derive = node if callable(node) else node.apply  # of functions written in Python
        made = derive(*[own.get(place) for place in range(len(node._input_metadata))])
        for gradient, (following, place) in zip(
            made if isinstance(made, tuple) else (made,), node.next_functions, strict=False
        ):
            if following is None or gradient is None:
                continue
            wanted = following._input_metadata[place]
            if tuple(gradient.shape) != tuple(wanted.shape):
                gradient = gradient.sum_to_size(wanted.shape)
            gradient = gradient.to(wanted.dtype)
            there = gradients.setdefault(following, {})
            there[place] = there[place] + gradient if place in there else gradient


def _ordered(root: Any) -> list[Any]:
    """Nodes of the graph, each after all that it leads to."""
    order, seen, pending = [], set(), [(root, False)]
    while pending:
        node, visited = pending.pop()
        if visited:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            pending.append((node, True))
            pending += [(after, False) for after, _ in node.next_functions if after is not None]
    return order
