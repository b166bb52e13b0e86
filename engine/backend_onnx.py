"""The reference backend, on ONNX Runtime: fp32, one image at a time on each of several streams.

The one file that imports onnxruntime. Since 1.29 its Linux wheels report usage, the model's name among it, to their
maker unless ORT_DISABLE_TELEMETRY is set before the import. A plant's inspection tells nobody anything: it is set here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from engine.errors import DeviceError, GraphError
from engine.processor import cpu_name
from engine.specs import TensorSpec
from engine.streams import StreamedBackend, ThreadStreams, cores

if TYPE_CHECKING:
    import numpy as np

_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind
    for kind in vars(ort_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == ort_state.__name__
)
"""What ONNX Runtime raises; its exceptions have no common root of their own."""
_LOAD_ERRORS: tuple[type[Exception], ...] = (*_ORT_ERRORS, KeyError, ValueError)


class OnnxGraph:
    """An ONNX graph whose first input is one image, for the calling thread; may be called from several at once."""

    def __init__(self, graph: bytes) -> None:
        """Load it. Raises GraphError where ONNX Runtime cannot."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_free_dimension_override_by_name("n", 1)  # images: a known shape is computed a little faster
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            images, *others = (_spec(value) for value in self._session.get_inputs())
        except _LOAD_ERRORS as error:
            msg = (
                f"the graph of {len(graph)} bytes cannot be loaded ({str(error).strip()[:300]}): expected a whole ONNX "
                "file that Framegate wrote; train the bundle again or fetch it anew"
            )
            raise GraphError(msg) from error
        self.inputs = (TensorSpec(images.name, (None, *images.shape[1:]), images.dtype), *others)

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs. Raises DeviceError where ONNX Runtime fails."""
        try:
            result: list[np.ndarray] = self._session.run(names, feeds)
        except _ORT_ERRORS as error:
            count = len(next(iter(feeds.values())))
            msg = f"ONNX Runtime failed on {count} images ({error}): expected it to compute; restart the process"
            raise DeviceError(msg) from error
        return result


class OnnxBackend(StreamedBackend):
    """The serving graph on ONNX Runtime. Meets `engine.backend.Backend`."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, graph: bytes, *, streams: int | None = None) -> None:
        """Load a serving graph. Raises GraphError where it cannot be loaded."""
        self.device = cpu_name()
        streams = streams or cores()
        loaded = OnnxGraph(graph)

        def run(images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]) -> list[np.ndarray]:
            return loaded.run(names, {"images": images, "head_weights": heads[0], "head_biases": heads[1]})

        super().__init__(loaded.inputs, ThreadStreams(run, streams), streams=streams)


def _spec(value: ort.NodeArg) -> TensorSpec:
    dtype = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}[value.type]
    return TensorSpec(value.name, tuple(side if isinstance(side, int) else None for side in value.shape), dtype)
