"""The CPU backend on ONNX Runtime: several one-image streams instead of batches.

The one file that imports onnxruntime. Since 1.29 its Linux wheels report usage, the model's name among it, to their
maker unless ORT_DISABLE_TELEMETRY is set before the import. A plant's inspection tells nobody anything: it is set here.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

from engine.backend import Features, check_images
from engine.specs import BatchProfile, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


class OneImageStreams:
    """An ONNX graph whose images run alone, each on one thread, as many side by side as there are streams.

    On a CPU a batch is no faster per image than its images one by one (convolutions are already as wide as the
    vector units), and one by one an image's numbers cannot depend on its neighbours.
    """

    def __init__(self, graph: bytes, streams: int | None = None) -> None:
        """Load a graph whose first input is the images; by default one stream per core this process may use."""
        self.streams = streams or len(os.sched_getaffinity(0))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._pool = ThreadPoolExecutor(self.streams, thread_name_prefix="engine-onnx")
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())

    def run(self, outputs: list[str], images: np.ndarray, others: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs for uint8 (n, h, w, 3) images, n in front; `others` are the graph's further inputs.

        Raises:
            InputError: the images are not what the graph takes.
        """
        check_images(images, self.inputs[0])

        def one(index: int) -> list[np.ndarray]:
            result: list[np.ndarray] = self._session.run(outputs, {"images": images[index : index + 1], **others})
            return result

        return [np.concatenate(parts) for parts in zip(*self._pool.map(one, range(len(images))), strict=True)]

    def close(self) -> None:
        """End the streams."""
        self._pool.shutdown()


class OnnxBackend:
    """The serving graph on ONNX Runtime. Meets `engine.backend.Backend`."""

    name = "onnx"
    precision = "fp32"

    def __init__(self, graph: bytes, *, streams: int | None = None) -> None:
        """Load a serving graph."""
        self._graph = OneImageStreams(graph, streams)
        self.device = platform.machine() or "cpu"
        self.profile = BatchProfile(1, 2 * self._graph.streams, 32)
        self.inputs = self._graph.inputs

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """See `Backend.infer`."""
        outputs = ["evidence", "pooled", *(["locations"] if locations else [])]
        return Features(*self._graph.run(outputs, images, {"head_weights": weights, "head_biases": biases}))

    def close(self) -> None:
        """See `Backend.close`."""
        self._graph.close()


def _spec(value: ort.NodeArg) -> TensorSpec:
    dtype = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}[value.type]
    return TensorSpec(value.name, tuple(side if isinstance(side, int) else None for side in value.shape), dtype)
