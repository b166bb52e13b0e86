"""What runs the featurizer. One contract, several implementations; heavy libraries load only when one is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.errors import BatchError, HeadError, InputError
from engine.specs import HEAD_GROUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.specs import BatchProfile, TensorSpec
    from engine.tensorrt_options import TensorRTOptions

SLOTS = 2
"""Batches that may be in a backend at once: while one computes, the next is copied in and the last copied out."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a backend gives back for n images and k heads; float32 arrays that belong to the caller.

    Attributes:
        evidence: (n, k).
        pooled: (n, d).
        locations: (n, rows, columns, k), or None when not asked for.
    """

    evidence: np.ndarray
    pooled: np.ndarray
    locations: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """A batch that was submitted and not collected yet. Opaque: only the backend that gave it knows what it means."""

    number: int


class Backend(Protocol):
    """Runs one featurizer graph.

    Promised: an image's numbers are the same whatever batch it travels in, and however often it is asked; a head's
    numbers are the same to the last bit whatever other heads are beside it. Both hold within one `precision` and one
    tuning of a device: TensorRT may take other kernels for small batches than for large ones, so there the last bits
    of an image may depend on which side of that line its batch lies. All methods may be called from one thread at a
    time. Arrays given are only read: `images` must stay unchanged until their ticket is collected, heads until
    `submit` returns. Arrays returned belong to the caller. After `close` nothing may be called; closing twice is
    harmless, and gives up what was not collected.

    Not promised: the same last bits on another kind of processor or another backend; `framegate verify` measures it.

    Attributes:
        name: of the runtime: `onnxruntime`, `openvino`, `tensorrt` or `modelled`.
        device: what computes, in words.
        precision: `fp32`, `bf16`, `fp16` or `int8`.
        profile: the batches it is prepared for; more than `profile.largest` images at once are refused.
        inputs: what the graph takes: images, head_weights, head_biases.
    """

    name: str
    device: str
    precision: str
    profile: BatchProfile
    inputs: tuple[TensorSpec, ...]

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """Features of uint8 (n, h, w, 3) images under heads (c, k) and (k,): `submit` and `collect` in one.

        Raises:
            BatchError: images of another shape or dtype than the graph takes, none, or more than the largest batch.
            HeadError: heads that do not fit the graph's channels or each other.
            DeviceError: the device failed.
        """
        ...

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        """Begin a batch and return without waiting for it. Arguments and errors as in `infer`.

        Raises:
            BatchError: also where `SLOTS` batches are submitted and not collected.
        """
        ...

    def collect(self, ticket: Ticket) -> Features:
        """Wait for a submitted batch; in any order. Each ticket once, whether its batch succeeded or failed.

        Raises:
            BatchError: the ticket is not, or no longer, out.
            DeviceError: the device failed on this batch; the other slot is not touched.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


CPU_BACKENDS = ("onnxruntime", "openvino", "openvino-bf16")
"""What runs on any machine, the reference first."""

GPU_BACKENDS = ("tensorrt", "tensorrt-fp32")
"""What needs an NVIDIA GPU: in float16, and in float32 for parity."""


def open_backend(name: str, graph: bytes, *, tensorrt: TensorRTOptions | None = None) -> Backend:
    """Open a backend on a serving graph. `engine.choice` opens one on a whole bundle, `auto` among them.

    Args:
        name: of `CPU_BACKENDS` or `GPU_BACKENDS`, or `openvino-int8` for a graph that `engine.quantize` made.
        graph: as `build_serving_graph` makes it.
        tensorrt: settings of the GPU backends; the name decides the precision among them.

    Raises:
        InputError: there is no backend of that name.
        GraphError: the graph is corrupt or not one of ours.
        DeviceError: this machine cannot run it.
        PlanError: no TensorRT plan can be built, kept or loaded.
    """
    # Each runtime is imported only when it is asked for.
    if name == "onnxruntime":
        from engine.backend_onnx import OnnxBackend  # noqa: PLC0415

        return OnnxBackend(graph)
    if name in {"openvino", "openvino-bf16", "openvino-int8"}:
        from engine.backend_openvino import OpenVinoBackend  # noqa: PLC0415

        return OpenVinoBackend(graph, precision=name.partition("-")[2] or "fp32")
    if name in GPU_BACKENDS:
        from engine.backend_tensorrt import TensorRTBackend  # noqa: PLC0415
        from engine.tensorrt_options import TensorRTOptions  # noqa: PLC0415

        precision = name.partition("-")[2] or "fp16"
        return TensorRTBackend(graph, replace(tensorrt or TensorRTOptions(), precision=precision))
    msg = f"backend {name!r} is not known: expected one of {', '.join((*CPU_BACKENDS, *GPU_BACKENDS))}"
    raise InputError(msg)


def check_batch(
    inputs: tuple[TensorSpec, ...],
    images: np.ndarray,
    weights: np.ndarray,
    biases: np.ndarray,
    *,
    largest: int | None = None,
) -> None:
    """Refuse a batch that the graph does not take, before it reaches native code. Raises as `Backend.infer`."""
    check_images(images, inputs[0])
    if largest is not None and len(images) > largest:
        msg = (
            f"batch has {len(images)} images: expected at most {largest}, the largest this backend is prepared for; "
            "send smaller batches or open it with a larger profile"
        )
        raise BatchError(msg)
    channels = inputs[1].shape[0]
    fits = (
        weights.ndim == 2  # noqa: PLR2004 - channels, heads
        and weights.shape[0] == channels
        and biases.shape == weights.shape[1:]
        and weights.shape[1] > 0
        and str(weights.dtype) == str(biases.dtype) == "float32"
    )
    if not fits:
        msg = (
            f"heads are {weights.dtype} {weights.shape} with biases {biases.dtype} {biases.shape}: expected float32 "
            f"({channels}, k) and (k,) with k of at least 1; take a head that was trained on this featurizer"
        )
        raise HeadError(msg)


def check_frames(
    inputs: tuple[TensorSpec, ...],
    frames: Sequence[np.ndarray],
    weights: np.ndarray,
    biases: np.ndarray,
    *,
    largest: int,
) -> None:
    """`check_batch` for frames that do not lie in one array, uint8 (h, w, 3) each."""
    shape = inputs[0].shape[1:]
    for frame in frames:
        if frame.shape != shape or frame.dtype != np.uint8:
            check_images(frame[None], inputs[0])
    if not 0 < len(frames) <= largest:
        msg = (
            f"batch has {len(frames)} images: expected 1 to {largest}, the largest this backend is prepared for; send "
            "smaller batches or open it with a larger profile"
        )
        raise BatchError(msg)
    check_batch(inputs, frames[0][None], weights, biases)


def check_images(images: np.ndarray, spec: TensorSpec) -> None:
    """Refuse images that the graph does not take. Raises BatchError."""
    shape = tuple(images.shape)
    fits = len(shape) == len(spec.shape) and all(
        want is None or want == got for want, got in zip(spec.shape, shape, strict=True)
    )
    if not fits or str(images.dtype) != spec.dtype or not len(images):
        msg = (
            f"images are {images.dtype} {shape}: expected {spec.dtype} {spec.shape} with at least one image; "
            "prepare them with the bundle's own image spec"
        )
        raise BatchError(msg)


def in_groups(weights: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heads (c, k) and (k,) as the graph takes them: a copy of its own, filled up to whole groups with zeros."""
    heads = -(-weights.shape[1] // HEAD_GROUP) * HEAD_GROUP
    columns = np.zeros((weights.shape[0], heads), np.float32)
    offsets = np.zeros(heads, np.float32)
    columns[:, : weights.shape[1]], offsets[: len(biases)] = weights, biases
    return columns, offsets


def without_filling(outputs: Sequence[np.ndarray], heads: int) -> Features:
    """The graph's outputs (evidence, pooled and, where asked for, locations) without the heads that only filled up."""
    evidence, pooled, *locations = outputs
    kept = [np.ascontiguousarray(values[..., :heads]) for values in (evidence, *locations)]
    return Features(kept[0], pooled, kept[1] if locations else None)


class Slots:
    """Which of a backend's slots are taken, and by which ticket. One thread at a time."""

    def __init__(self) -> None:
        """All free."""
        self._free = list(range(SLOTS))
        self._taken: dict[int, int] = {}
        self._next = 0

    def take(self) -> tuple[Ticket, int]:
        """A ticket and its slot. Raises BatchError where none is free."""
        if not self._free:
            msg = f"{SLOTS} batches are submitted already: expected one of them to be collected first"
            raise BatchError(msg)
        self._next += 1
        self._taken[self._next] = self._free.pop(0)
        return Ticket(self._next), self._taken[self._next]

    def slot(self, ticket: Ticket) -> int:
        """The slot of a ticket that is out. Raises BatchError."""
        if ticket.number not in self._taken:
            msg = f"ticket {ticket.number} is not out: expected one that `submit` gave and `collect` has not seen yet"
            raise BatchError(msg)
        return self._taken[ticket.number]

    def give_back(self, ticket: Ticket) -> None:
        """Free a ticket's slot."""
        self._free.append(self._taken.pop(ticket.number))
