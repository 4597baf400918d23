"""Convolutions of an ONNX graph as products of 8-bit integers.

In onnxruntime a convolution of integers is no faster than one of floats, and a product of matrices is.
B utterances, C channels in and D out, S steps in and T out, K weights under the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy

_LARGEST = 127  # of int8, so that negative and positive weights have the same range
_TO_THE_END = numpy.iinfo(numpy.int64).max


def integer_convolutions(model: Any) -> None:
    """Replace, in a model of onnx, every convolution (B, C, S) → (B, D, T) of more than one channel, without padding,
    groups and dilation, by a product of its inputs under the kernel, (B, T, K·C), with its weights, (K·C, D).

    Weights have a scale for each channel out; inputs one that is measured as it runs, before they are laid side by
    side, so that what is moved about has a quarter of the bytes. onnxruntime takes out the transpositions between two
    of them. A waveform is one channel, and stays in float32: its 16 bits are what is heard.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        kernel = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if kernel is None or not _fits(node, kernel):
            nodes.append(node)
        else:
            made, constants = _product(node, numpy_helper.to_array(kernel))
            nodes += made
            graph.initializer.extend(constants)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name in weights.keys() - used:
        graph.initializer.remove(weights[name])


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _fits(node: Any, kernel: Any) -> bool:
    """Whether `_product` can take the place of a convolution with a constant kernel."""
    given = _attributes(node)
    return (
        len(kernel.dims) == 3
        and kernel.dims[1] > 1
        and given.get("group", 1) == 1
        and given.get("dilations", [1]) == [1]
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and not any(given.get("pads", [0]))
    )


def _product(node: Any, kernel: numpy.ndarray) -> tuple[list[Any], list[Any]]:
    """The nodes that take the place of a convolution with a kernel (D, C, K), and their constants."""
    from onnx import TensorProto, helper, numpy_helper

    channels_out, _, width = kernel.shape
    (stride,), (out,) = _attributes(node).get("strides", [1]), node.output
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(numpy.asarray(values), f"{out}_{name}"))
        return f"{out}_{name}"

    def add(kind: str, inputs: list[str], *names: str, **settings: Any) -> list[str]:
        names = tuple(f"{out}_{name}" for name in names)
        nodes.append(helper.make_node(kind, inputs, names, **settings))
        return list(names)

    rows = kernel.transpose(2, 1, 0).reshape(-1, channels_out)  # (K·C, D)
    scales = numpy.abs(rows).max(0) / _LARGEST
    scales[scales == 0] = 1  # a channel that is pruned
    integers = constant("weight", numpy.rint(rows / scales).astype(numpy.int8))

    (steps,) = add("Transpose", [node.input[0]], "steps", perm=[0, 2, 1])
    quantized, scale, zero = add("DynamicQuantizeLinear", [steps], "quantized", "scale", "zero")
    axis, step = constant("axis", [1]), constant("step", [stride])
    taps = []
    for tap in range(width):
        start = constant(f"start_{tap}", [tap])
        end = constant(f"end_{tap}", [tap + 1 - width if tap + 1 < width else _TO_THE_END])
        taps += add("Slice", [quantized, start, end, axis, step], f"tap_{tap}")
    (windows,) = add("Concat", taps, "windows", axis=2)
    (sums,) = add("MatMulInteger", [windows, integers, zero], "sums")
    (floats,) = add("Cast", [sums], "floats", to=TensorProto.FLOAT)
    (both,) = add("Mul", [scale, constant("weight_scales", scales)], "scales")
    (result,) = add("Mul", [floats, both], "product")
    if len(node.input) > 2:
        (result,) = add("Add", [result, node.input[2]], "biased")
    nodes.append(helper.make_node("Transpose", [result], [out], perm=[0, 2, 1]))
    return nodes, constants
