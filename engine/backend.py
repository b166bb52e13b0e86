"""What runs the featurizer. One contract, several implementations; heavy libraries load only when one is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engine.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from engine.specs import BatchProfile, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a backend gives back for n images and k heads; float32 arrays that belong to the caller.

    Attributes:
        evidence: (n, k).
        pooled: (n, d).
        locations: (n, k, rows, columns), or None when not asked for.
    """

    evidence: np.ndarray
    pooled: np.ndarray
    locations: np.ndarray | None = None


class Backend(Protocol):
    """Runs one featurizer graph.

    Promised: an image's numbers are the same whatever batch it travels in, and however often it is asked. `infer` may
    be called from one thread at a time. Arrays given are only read, and not after `infer` returns; arrays returned
    belong to the caller. After `close` nothing may be called; closing twice is harmless.

    Not promised: the same last bits on another kind of processor or another backend; `framegate verify` measures it.
    """

    name: str
    device: str
    precision: str
    profile: BatchProfile
    inputs: tuple[TensorSpec, ...]

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """Features of uint8 (n, h, w, 3) images under heads (c, k) and (k,).

        Raises:
            InputError: a shape or dtype is not what the graph takes.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


BACKENDS = ("auto", "onnx")


def open_backend(name: str, graph: bytes) -> Backend:
    """Open a backend on a serving graph.

    Raises:
        InputError: there is no backend of that name.
    """
    if name in {"auto", "onnx"}:
        from engine.backend_onnx import OnnxBackend  # noqa: PLC0415 - only when asked for

        return OnnxBackend(graph)
    msg = f"backend {name!r} is not known: expected one of {', '.join(BACKENDS)}"
    raise InputError(msg)


def check_images(images: np.ndarray, spec: TensorSpec) -> None:
    """Refuse images that the graph does not take, before they reach native code."""
    shape = tuple(images.shape)
    fits = len(shape) == len(spec.shape) and all(
        want is None or want == got for want, got in zip(spec.shape, shape, strict=True)
    )
    if not fits or str(images.dtype) != spec.dtype or not len(images):
        msg = f"images are {images.dtype} {shape}: expected {spec.dtype} {spec.shape} with at least one image"
        raise InputError(msg)
