"""Which backend runs a bundle: the one asked for, or the fastest here that answers as the reference does."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING

from engine.agreement import compare, infer_all
from engine.backend import CPU_BACKENDS, GPU_BACKENDS, open_backend
from engine.backend_tiled import on_whole_images
from engine.errors import BundleError, DeviceError, ParityError, PlanError
from engine.featurizer import FeaturizerSpec
from engine.heads import stack
from engine.processor import cpu_name, has_bfloat16
from engine.tiles import split

if TYPE_CHECKING:
    from engine.agreement import Agreement
    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.tensorrt_options import TensorRTOptions

log = logging.getLogger(__name__)

INT8_BACKENDS = ("openvino-int8", "tensorrt-int8")
"""On a graph that is quantized for the bundle when it is opened; never taken by `auto`."""

BACKENDS = ("auto", *CPU_BACKENDS, *GPU_BACKENDS, *INT8_BACKENDS)
"""What `--backend` takes."""


def open_for(bundle: Bundle, name: str = "auto", *, tensorrt: TensorRTOptions | None = None) -> Backend:
    """Open a backend on a bundle, for whole images also where its graph takes tiles; `tensorrt` is for TensorRT alone.

    `auto` takes a GPU where one can be used, else the processor's fastest arithmetic that answers as the bundle's
    reference does, else the reference itself. It says in the log what it took and why.

    Raises:
        InputError: there is no backend of that name.
        GraphError: the bundle's graph is corrupt.
        BundleError: the bundle's graph does not fit its image spec; or int8 was asked for, and the bundle brings no
            reference images to calibrate it on.
        ParityError: int8 was asked for, and this bundle's parts are not decided as before in it.
        DeviceError, PlanError: the backend asked for cannot run here; `auto` goes on to the next instead.
    """
    if name in INT8_BACKENDS:
        return _quantized(bundle, name, tensorrt)
    if name != "auto":
        return _open(bundle, name, bundle.graph, tensorrt)
    backend = _gpu(bundle, tensorrt) or _fastest_on_the_processor(bundle)
    if backend is None:
        backend = _open(bundle, "onnxruntime", bundle.graph)
        log.info(
            "backend onnxruntime fp32 on %s: the reference, and nothing faster here answers as it does", cpu_name()
        )
    return backend


def _open(bundle: Bundle, name: str, graph: bytes, tensorrt: TensorRTOptions | None = None) -> Backend:
    """A backend on a graph of the bundle's, for whole images also where the graph takes tiles."""
    backend = open_backend(name, graph, tensorrt=tensorrt)
    return on_whole_images(backend, bundle.image, FeaturizerSpec.from_json(bundle.featurizer))


def agreement(bundle: Bundle, backend: Backend) -> Agreement | None:
    """How near a backend is to the bundle's reference; None where the bundle brings none."""
    if bundle.reference is None:
        return None
    features = infer_all(backend, bundle.reference.images, *stack([bundle.head]))
    return compare(features, bundle.reference, bundle.head, backend.precision)


def _quantized(bundle: Bundle, name: str, tensorrt: TensorRTOptions | None) -> Backend:
    """The graph in int8, as much of it as the bundle's reference images allow."""
    from engine.quantize import FULL_PRECISION_UNTIL, quantized  # noqa: PLC0415 - heavy, and only for int8

    if bundle.reference is None:
        msg = f"bundle {bundle.name!r} brings no reference images: int8 is calibrated on them; train it again"
        raise BundleError(msg)
    found, images = None, split(bundle.reference.images, bundle.image)
    for keep in FULL_PRECISION_UNTIL:
        graph = quantized(bundle.graph, images, keep)
        backend = _open(bundle, name.replace("tensorrt-int8", "tensorrt"), graph, tensorrt)
        found = agreement(bundle, backend)
        if found is not None and found.agrees:
            log.info("int8 on all convolutions but those of %s: %s", ", ".join(keep), found)
            return backend
        backend.close()
    msg = (
        f"int8 is not offered for bundle {bundle.name!r}: {found}; expected the reference's decisions; "
        "take --backend auto"
    )
    raise ParityError(msg)


def tensorrt_is_installed() -> bool:
    """Whether this environment has it; whether it works is another question."""
    return importlib.util.find_spec("tensorrt") is not None


def _gpu(bundle: Bundle, tensorrt: TensorRTOptions | None) -> Backend | None:
    """TensorRT where it is installed and works; one warning where it is installed and does not."""
    if not tensorrt_is_installed():
        return None
    try:
        backend = _open(bundle, "tensorrt", bundle.graph, tensorrt)
    except (DeviceError, PlanError) as error:
        log.warning("TensorRT is installed and cannot be used, so the CPU computes: %s", error)
        return None
    return _if_it_agrees(bundle, backend, "a GPU is here")


def _fastest_on_the_processor(bundle: Bundle) -> Backend | None:
    """bfloat16 where the processor has it: faster than anything in fp32; then OpenVINO, which is the faster in fp32."""
    if bundle.reference is None:
        return None
    if has_bfloat16():
        backend = _if_it_agrees(
            bundle, _open(bundle, "openvino-bf16", bundle.graph), "the processor multiplies bfloat16"
        )
        if backend is not None:
            return backend
    return _if_it_agrees(bundle, _open(bundle, "openvino", bundle.graph), "the fastest in fp32 on a processor")


def _if_it_agrees(bundle: Bundle, backend: Backend, why: str) -> Backend | None:
    """The backend, or None (and it is closed) where its answers are not the reference's."""
    found = agreement(bundle, backend)
    what = f"{backend.name} {backend.precision} on {backend.device}"
    if found is None or found.agrees:
        log.info("backend %s: %s, and on the bundle's reference images %s", what, why, found or "nothing is known")
        return backend
    log.warning("backend %s is faster and not taken, for it is not the reference's answer: %s", what, found)
    backend.close()
    return None
