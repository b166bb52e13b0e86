"""The graph that a strongly typed runtime gets: TensorRT 11 computes in what the ONNX says, and in nothing else.

Float16 runs from the images up to where a map is summed over its locations or meets a head; from there to the outputs
everything is float32, as are the heads. The convolutions are where the time goes, and a rounded map costs no decision;
squares and powers of rounded maps may leave the range of float16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.errors import GraphError
from engine.graph import is_quantized, read_graph

_HALF_OPS = frozenset({"Transpose", "Sub", "Conv", "Clip", "Add"})
"""What may run in float16. Whatever else there is begins the float32 part, and so does whatever reads from that."""
_HALF_MAX = float(np.finfo(np.float16).max)


def typed_graph(data: bytes, precision: str) -> bytes:
    """A serving graph as TensorRT gets it; the same bytes for the same arguments.

    Args:
        data: the graph as it is in the bundle, float32 or quantized.
        precision: `fp16` or `fp32`; a quantized graph says itself what it computes in.

    Raises:
        GraphError: it is corrupt, or does not fit into float16.
    """
    model = cast_first(read_graph(data))
    if precision == "fp16" and not is_quantized(model):
        model = to_half(model)
    typed: bytes = model.SerializeToString(deterministic=True)
    read_graph(typed)
    return typed


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that casts first, with its convolutions in float16: same inputs, same outputs, same names.

    Raises:
        GraphError: it holds Q/DQ pairs, or a constant beyond float16's range.
    """
    if is_quantized(model):
        msg = "the graph is quantized already: expected a float32 graph; run it as it is, in int8"
        raise GraphError(msg)
    return _Pass(model).run()


def cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its images cast before they are turned: TensorRT moves no uint8, it only casts it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = changed.graph.node
    images = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    turned = {node.output[0]: node for node in nodes if node.op_type == "Transpose" and node.input[0] in images}
    for cast in [node for node in nodes if node.op_type == "Cast" and node.input[0] in turned]:
        turn = turned[cast.input[0]]
        source, between, result = turn.input[0], f"{turn.input[0]}_cast", cast.output[0]
        moved = helper.make_node("Cast", [source], [between], name=cast.name, to=_target(cast))
        last = helper.make_node("Transpose", [between], [result], name=turn.name)
        last.attribute.extend(turn.attribute)
        cast.CopyFrom(last)
        turn.CopyFrom(moved)
    del changed.graph.value_info[:]
    return changed


def _target(cast: onnx.NodeProto) -> int:
    return next(int(item.i) for item in cast.attribute if item.name == "to")


class _Pass:
    """One walk over the nodes, in their order, which ONNX keeps topological."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._source = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {output.name for output in model.graph.output}
        self._images = {
            value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8
        }
        self._half: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._kept: dict[str, onnx.TensorProto] = {}
        self._restored: set[str] = set()

    def run(self) -> onnx.ModelProto:
        """Convert."""
        for node in self._source.graph.node:
            if self._runs_in_half(node):
                self._as_half(node)
            else:
                self._as_float(node)
        model = onnx.ModelProto()
        model.CopyFrom(self._source)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self._nodes)
        model.graph.initializer.extend(self._kept.values())
        return model

    def _runs_in_half(self, node: onnx.NodeProto) -> bool:
        """The images' cast, and from there on every op that may and reads only constants and what ran so."""
        inputs = [name for name in node.input if name and name not in self._constants]
        if node.op_type == "Cast":
            return all(name in self._images for name in inputs)
        return node.op_type in _HALF_OPS and all(name in self._half for name in inputs)

    def _as_half(self, node: onnx.NodeProto) -> None:
        """Add a node that computes in float16."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        self._half.update(node.output)
        if node.op_type == "Cast":
            next(item for item in new.attribute if item.name == "to").i = TensorProto.FLOAT16
        for index, name in enumerate(node.input):
            if name in self._constants:
                new.input[index] = self._half_constant(name)
            elif name in self._half:
                new.input[index] = self._half_name(name)
        new.output[0] = self._half_name(node.output[0])
        self._nodes.append(new)
        if node.output[0] in self._outputs:
            self._restore(node.output[0])

    def _as_float(self, node: onnx.NodeProto) -> None:
        """Add a node as it is, its float16 inputs restored to float32."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in self._constants:
                self._kept[name] = self._constants[name]
            elif name in self._half:
                new.input[index] = self._restore(name)
        self._nodes.append(new)

    def _half_name(self, name: str) -> str:
        return f"{name}_half" if name in self._outputs else name

    def _restore(self, name: str) -> str:
        """The float32 copy of a float16 tensor; made once, and an output's copy is the output itself."""
        copy = name if name in self._outputs else f"{name}_float"
        if copy not in self._restored:
            self._restored.add(copy)
            half = self._half_name(name)
            self._nodes.append(helper.make_node("Cast", [half], [copy], name=f"{name}_float", to=TensorProto.FLOAT))
        return copy

    def _half_constant(self, name: str) -> str:
        """A float32 constant's float16 copy; others as they are."""
        tensor = self._constants[name]
        if tensor.data_type != TensorProto.FLOAT:
            self._kept[name] = tensor
            return name
        copy = f"{name}_half"
        if copy not in self._kept:
            values = numpy_helper.to_array(tensor)
            largest = float(np.abs(values).max(initial=0))
            if not largest <= _HALF_MAX:
                msg = (
                    f"constant {name} of the graph reaches {largest:g}: expected at most {_HALF_MAX:g}, the range of "
                    "float16; use --backend tensorrt-fp32"
                )
                raise GraphError(msg)
            self._kept[copy] = numpy_helper.from_array(values.astype(np.float16), copy)
        return copy
