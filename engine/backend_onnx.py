"""The CPU backend on ONNX Runtime: several one-image streams instead of batches.

The one file that imports onnxruntime. Since 1.29 its Linux wheels report usage, the model's name among it, to their
maker unless ORT_DISABLE_TELEMETRY is set before the import. A plant's inspection tells nobody anything: it is set here.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from engine.backend import Features, Slots, Ticket, check_batch, check_images, in_groups, without_filling
from engine.errors import DeviceError, GraphError
from engine.processor import cpu_name
from engine.specs import BatchProfile, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind
    for kind in vars(ort_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == ort_state.__name__
)
"""What ONNX Runtime raises; its exceptions have no common root of their own."""
_LOAD_ERRORS: tuple[type[Exception], ...] = (*_ORT_ERRORS, KeyError, ValueError)


class OneImageStreams:
    """An ONNX graph whose images run alone, each on one thread, as many side by side as there are streams.

    On a CPU a batch is no faster per image than its images one by one (convolutions are already as wide as the
    vector units), and one by one an image's numbers cannot depend on its neighbours.
    """

    def __init__(self, graph: bytes, streams: int | None = None) -> None:
        """Load a graph whose first input is the images; by default one stream per core this process may use.

        Raises:
            GraphError: ONNX Runtime cannot load it.
        """
        self.streams = streams or len(os.sched_getaffinity(0))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        except _LOAD_ERRORS as error:
            msg = (
                f"the graph of {len(graph)} bytes cannot be loaded ({str(error).strip()[:300]}): expected a whole ONNX "
                "file that Framegate wrote; train the bundle again or fetch it anew"
            )
            raise GraphError(msg) from error
        self._pool = ThreadPoolExecutor(self.streams, thread_name_prefix="engine-onnx")

    def run(self, outputs: list[str], images: np.ndarray, others: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs for uint8 (n, h, w, 3) images, n in front; `others` are the graph's further inputs.

        Raises:
            BatchError: the images are not what the graph takes.
        """
        check_images(images, self.inputs[0])
        return joined(self.begin(outputs, images, others))

    def begin(
        self, outputs: list[str], images: np.ndarray, others: Mapping[str, np.ndarray]
    ) -> list[Future[list[np.ndarray]]]:
        """The same as one future per image, of images that were checked."""

        def one(index: int) -> list[np.ndarray]:
            result: list[np.ndarray] = self._session.run(outputs, {"images": images[index : index + 1], **others})
            return result

        return [self._pool.submit(one, index) for index in range(len(images))]

    def close(self) -> None:
        """End the streams."""
        self._pool.shutdown(cancel_futures=True)


def joined(parts: list[Future[list[np.ndarray]]]) -> list[np.ndarray]:
    """Each output of all images, n in front."""
    return [np.concatenate(rows) for rows in zip(*(part.result() for part in parts), strict=True)]


class OnnxBackend:
    """The serving graph on ONNX Runtime. Meets `engine.backend.Backend`."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, graph: bytes, *, streams: int | None = None) -> None:
        """Load a serving graph. Raises GraphError where it cannot be loaded."""
        self._graph = OneImageStreams(graph, streams)
        self._slots = Slots()
        self._out: dict[int, tuple[list[Future[list[np.ndarray]]], int]] = {}
        self.device = cpu_name()
        self.profile = BatchProfile(1, 2 * self._graph.streams, 32)
        self.inputs = self._graph.inputs

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """See `Backend.infer`."""
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        """See `Backend.submit`."""
        check_batch(self.inputs, images, weights, biases, largest=self.profile.largest)
        ticket, slot = self._slots.take()
        outputs = ["evidence", "pooled", *(["locations"] if locations else [])]
        columns, offsets = in_groups(weights, biases)
        parts = self._graph.begin(outputs, images, {"head_weights": columns, "head_biases": offsets})
        self._out[slot] = parts, weights.shape[1]
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        """See `Backend.collect`."""
        parts, heads = self._out.pop(self._slots.slot(ticket))
        self._slots.give_back(ticket)
        try:
            return without_filling(joined(parts), heads)
        except _ORT_ERRORS as error:
            msg = ()
            raise DeviceError(msg) from error

    def close(self) -> None:
        """See `Backend.close`."""
        self._graph.close()


def _spec(value: ort.NodeArg) -> TensorSpec:
    dtype = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}[value.type]
    return TensorSpec(value.name, tuple(side if isinstance(side, int) else None for side in value.shape), dtype)
