"""A CPU backend on OpenVINO: fp32, or bf16 where the processor multiplies it in hardware. The one file that imports it.

Its converter, which it imports too, reports usage to its maker as soon as it is imported, unless the package for that
is missing. A plant's inspection tells nobody anything: here it is as if it were missing.

In bf16 the stem and the first block stay in fp32. Rounding their weights alone moved the taps by 5 to 7 % (their
channels are differences of large terms), and all that follows by 1 to 2 % only.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's own mark for "not there"
import openvino as ov

from engine.errors import DeviceError, GraphError, InputError
from engine.processor import cpu_name, has_bfloat16
from engine.signal_stack import signal_stack_kept
from engine.specs import TensorSpec
from engine.streams import StreamedBackend, cores, sharing

if TYPE_CHECKING:
    from collections.abc import Mapping

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Precision -> what OpenVINO calls the type of what is not quantized."""

FULL_PRECISION = ("images_", "centred", "stem_", "block0_")
"""Names of the nodes that bf16 leaves alone begin with one of these."""


class OpenVinoBackend(StreamedBackend):
    """The serving graph on OpenVINO. Meets `engine.backend.Backend`."""

    name = "openvino"

    def __init__(self, graph: bytes, *, precision: str = "fp32", streams: int | None = None) -> None:
        """Compile a serving graph; a quantized one with the precision `int8`.

        Raises:
            GraphError: OpenVINO cannot read or compile it.
            DeviceError: bf16 on a processor without it: it would be emulated, slower than fp32.
        """
        if precision not in _HINTS:
            msg = f"precision {precision!r} is not known to OpenVINO here: expected one of {', '.join(_HINTS)}"
            raise InputError(msg)
        if precision == "bf16" and not has_bfloat16():
            msg = (
                f"{cpu_name()} has no bfloat16: expected AMX, AVX-512 BF16 or Arm's BF16; take --backend openvino or "
                "onnxruntime"
            )
            raise DeviceError(msg)
        self.precision = precision
        self.device = cpu_name()
        streams = streams or cores()
        properties: dict[str, Any] = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": streams}
        if sharing():
            properties["ENABLE_CPU_PINNING"] = False
        compiled = compile_graph(graph, precision, properties, batch=1)
        images, *heads = (_spec(port) for port in compiled.inputs)
        inputs = TensorSpec(images.name, (None, *images.shape[1:]), images.dtype), *heads
        super().__init__(inputs, _Requests(compiled), streams=streams)


_loading = threading.Lock()
_loaded: list[ov.Core] = []


def _core() -> ov.Core:
    """The one core of this process, with its processor plugin loaded, and never unloaded: see `engine.signal_stack`."""
    with _loading:
        if not _loaded:
            with signal_stack_kept():
                core = ov.Core()
                core.get_property("CPU", "FULL_DEVICE_NAME")  # the plugin is loaded when it is first asked
            _loaded.append(core)
    return _loaded[0]


def compile_graph(
    graph: bytes, precision: str, properties: Mapping[str, Any], *, batch: int | None = None, marked: bool = True
) -> ov.CompiledModel:
    """Compile a serving graph for the CPU.

    Args:
        graph: as `build_serving_graph` makes it.
        precision: `fp32`, `bf16` or `int8`.
        properties: OpenVINO's own, streams and threads among them.
        batch: the only number of images it will take: it is a quarter faster than one that takes any, since its
            buffers and kernels are laid out once. The number of heads stays free.
        marked: in bf16, keep `FULL_PRECISION` in fp32.

    Raises:
        GraphError: OpenVINO cannot read or compile it.
    """
    core = _core()
    try:
        model = core.read_model(graph)
        if precision == "bf16" and marked:
            model = _keep_full_precision(core, model)
        if batch is not None:
            images = model.input("images")
            shape = images.get_partial_shape()
            shape[0] = batch
            model.reshape({"images": shape})
        return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": _HINTS[precision], **properties})
    except RuntimeError as error:  # what OpenVINO raises for everything
        msg = (
            f"the graph of {len(graph)} bytes cannot be loaded ({' '.join(str(error).split())[:300]}): expected a "
            "whole ONNX file that Framegate wrote; train the bundle again or fetch it anew"
        )
        raise GraphError(msg) from error


def _keep_full_precision(core: ov.Core, model: ov.Model) -> ov.Model:
    """The same model with the nodes of `FULL_PRECISION` marked as not to be converted.

    OpenVINO has this mark in its C++ interface and in its file format, not in Python: so through the file format.
    """
    with tempfile.TemporaryDirectory(prefix="framegate-") as folder:
        layout, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        ov.serialize(model, layout, weights)
        tree = ET.fromstring(layout.read_text(encoding="utf-8"))  # noqa: S314 - written by OpenVINO a moment ago
        for layer in tree.iterfind("layers/layer"):
            if str(layer.get("name")).startswith(FULL_PRECISION) and layer.get("type") not in {"Const", "Result"}:
                marks = layer.find("rt_info")
                marks = ET.SubElement(layer, "rt_info") if marks is None else marks
                mark = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
                ET.SubElement(marks, "attribute", mark)
        return core.read_model(ET.tostring(tree), ov.Tensor(np.fromfile(weights, np.uint8)))


class _Requests:
    """OpenVINO's own threads as `engine.streams.Streams`: a request for each image, begun and not waited for.

    Requests are used again; there are as many as there ever were images on their way at once.
    """

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._compiled = compiled
        self._outputs = {port.get_any_name(): index for index, port in enumerate(compiled.outputs)}
        self._idle: list[ov.InferRequest] = []

    def begin(self, images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]) -> list[_Request]:
        weights, biases = (ov.Tensor(values, shared_memory=True) for values in heads)
        outputs = [self._outputs[name] for name in names]
        begun: list[_Request] = []
        try:
            for index in range(len(images)):
                request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
                image = ov.Tensor(images[index : index + 1], shared_memory=True)
                for place, tensor in enumerate((image, weights, biases)):  # by name it takes half as long again
                    request.set_input_tensor(place, tensor)
                request.start_async()
                begun.append(_Request(request, outputs, (images, heads), self._idle))
        except RuntimeError as error:
            for pending in begun:
                pending.cancel()
            raise _failed(error) from error
        return begun

    def close(self) -> None:
        self._idle.clear()
        self._compiled = None


class _Request:
    """One image on its way."""

    def __init__(
        self, request: ov.InferRequest, outputs: list[int], reads: object, idle: list[ov.InferRequest]
    ) -> None:
        self._request = request
        self._outputs = outputs
        self._reads = reads  # a tensor on shared memory does not keep its array alive
        self._idle = idle

    def result(self) -> list[np.ndarray]:
        try:
            self._request.wait()
            outputs = [self._request.get_output_tensor(index).data.copy() for index in self._outputs]
        except RuntimeError as error:
            raise _failed(error) from error
        self._idle.append(self._request)
        return outputs

    def cancel(self) -> None:
        self._request.cancel()
        with contextlib.suppress(RuntimeError):  # that it was cancelled
            self._request.wait()


def _failed(error: RuntimeError) -> DeviceError:
    return DeviceError(f"OpenVINO failed on an image ({error}): expected it to compute; restart the process")


def _spec(port: ov.ConstOutput) -> TensorSpec:
    shape = tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape())
    return TensorSpec(
        port.get_any_name(), shape, {"u8": "uint8", "f32": "float32"}[port.get_element_type().get_type_name()]
    )
