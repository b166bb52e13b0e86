"""int8 by explicit symmetric Q/DQ, calibrated on real pictures: the one form that TensorRT and OpenVINO both take.

Only convolutions are quantized, weights per channel. The first blocks may be left out: there the channels are
differences of large terms, and eight bits lose them.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

import engine.backend_onnx  # noqa: F401 - switches ONNX Runtime's usage reports off before it is imported below
from engine.errors import GraphError
from engine.specs import HEAD_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL_PRECISION_UNTIL = (
    ("stem_",),
    ("stem_", "block0_", "block1_"),
    ("stem_", "block0_", "block1_", "block2_", "block3_"),
)
"""What stays in floating point, the fewest nodes first: names begin with one of these."""


def quantized(graph: bytes, images: np.ndarray, keep: tuple[str, ...]) -> bytes:
    """A serving graph with its convolutions in int8.

    Args:
        graph: as `engine.backbone.build_serving_graph` makes it.
        images: uint8 (n, h, w, 3), pictures such as the line sends; their ranges become the scales.
        keep: nodes whose names begin with one of these stay as they are.

    Raises:
        GraphError: the graph is corrupt, or has nothing to quantize.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: PLC0415

    try:
        model = onnx.load_from_string(graph)
        channels = next(value for value in model.graph.input if value.name == "head_weights").type.tensor_type.shape
    except Exception as error:  # whatever protobuf raises for bytes that are no graph; StopIteration for another one
        msg = f"the graph of {len(graph)} bytes cannot be quantized ({error}): expected a serving graph of Framegate"
        raise GraphError(msg) from error
    nodes = [node.name for node in model.graph.node if node.op_type == "Conv" and not node.name.startswith(keep)]
    if not nodes:
        msg = f"nothing in the graph is left to quantize besides {', '.join(keep)}: expected convolutions"
        raise GraphError(msg)
    heads = {
        "head_weights": np.zeros((channels.dim[0].dim_value, HEAD_GROUP), np.float32),
        "head_biases": np.zeros(HEAD_GROUP, np.float32),
    }

    class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """One picture after the other."""

        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, np.ndarray]] = ({"images": image[None], **heads} for image in images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory(prefix="framegate-") as folder:
        out = Path(folder, "int8.onnx")
        logger = logging.getLogger()  # the quantizer logs advice for its command line on the root logger
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            quantize_static(
                model,
                out,
                Pictures(),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
        finally:
            logger.setLevel(level)
        return out.read_bytes()
