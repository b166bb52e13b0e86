"""What an ONNX file from a bundle must be before a backend may rely on it: whole, valid, and one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from engine.errors import GraphError
from engine.specs import TensorSpec

_QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_DTYPES: dict[int, str] = {TensorProto.UINT8: "uint8", TensorProto.FLOAT: "float32"}


def read_graph(data: bytes) -> onnx.ModelProto:
    """A whole and valid ONNX graph.

    Raises:
        GraphError: it is not one.
    """
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        detail = " ".join(str(error).split())[:300]
        msg = (
            f"the graph of {len(data)} bytes cannot be loaded ({detail}): expected a whole ONNX file that Framegate "
            "wrote; train the bundle again or fetch it anew"
        )
        raise GraphError(msg) from error
    return model


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the graph says itself, by Q/DQ pairs, what runs in int8: such a graph is not to be made float16."""
    return any(node.op_type in _QUANTIZED_OPS for node in model.graph.node)


@dataclass(frozen=True, slots=True)
class ServingShapes:
    """What a serving graph takes and gives, for a backend that has to make room for it.

    Attributes:
        inputs: images (n, h, w, 3) uint8, head_weights (c, k) and head_biases (k) float32.
        outputs: evidence (n, k), pooled (n, d), locations (n, rows, columns, k), all float32.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Self:
        """Read them off a graph.

        Raises:
            GraphError: it is no serving graph.
        """
        inputs, outputs = ([_spec(value) for value in values] for values in (model.graph.input, model.graph.output))
        found = [_form(spec) for spec in (*inputs, *outputs)]
        if found != _SERVING:
            msg = (
                f"the graph takes and gives {', '.join(found) or 'nothing'}: expected {', '.join(_SERVING)}; "
                "take the graph of a Framegate bundle"
            )
            raise GraphError(msg)
        return cls(tuple(inputs), tuple(outputs))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    sides = tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)
    return TensorSpec(value.name, sides, _DTYPES.get(tensor.elem_type, f"type {tensor.elem_type}"))


def _form(spec: TensorSpec) -> str:
    """Name, dtype and which sides vary: `images uint8 *xx3`."""
    sides = "".join("*" if side is None else "3" if side == 3 else "x" for side in spec.shape)  # noqa: PLR2004 - colours
    return f"{spec.name} {spec.dtype} {sides}"


_SERVING = [
    "images uint8 *xx3",
    "head_weights float32 x*",
    "head_biases float32 *",
    "evidence float32 **",
    "pooled float32 *x",
    "locations float32 *xx*",
]
