"""A CPU backend on OpenVINO: fp32, or bf16 where the processor multiplies it in hardware. The one file that imports it.

Its converter, which it imports too, reports usage to its maker as soon as it is imported, unless the package for that
is missing. A plant's inspection tells nobody anything: here it is as if it were missing.

In bf16 the stem and the first block stay in fp32. Rounding their weights alone moved the taps by 5 to 7 % (their
channels are differences of large terms), and all that follows by 1 to 2 % only.
"""

from __future__ import annotations

import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from queue import SimpleQueue

import numpy as np

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's own mark for "not there"
import openvino as ov

from engine.errors import DeviceError, GraphError, InputError
from engine.processor import cpu_name, has_bfloat16
from engine.specs import HEAD_GROUP, LARGEST_BATCH, BatchProfile, TensorSpec
from engine.streams import Runner, StreamedBackend, cores

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Precision -> what OpenVINO calls the type of what is not quantized."""

FULL_PRECISION = ("images_", "centred", "stem_", "block0_")
"""Names of the nodes that bf16 leaves alone begin with one of these."""

CHUNK_PIXELS = 8 * 160 * 160
"""Pixels in a good chunk: more fall out of a core's cache, fewer cannot fill its vector units."""
LARGEST_CHUNK = 16


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
        compiled = _compile(graph, precision, streams)
        inputs = tuple(_spec(port) for port in compiled.inputs)
        _, height_px, width_px, _ = inputs[0].shape
        fitting = CHUNK_PIXELS // ((height_px or 1) * (width_px or 1))
        requests: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(streams):
            requests.put(compiled.create_infer_request())

        def run(images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]) -> list[np.ndarray]:
            request = requests.get()
            try:
                return _infer(request, images, heads, names)
            finally:
                requests.put(request)

        chunk = max(1, min(fitting, LARGEST_CHUNK))
        if chunk > 1 and not _is_batch_invariant(run, inputs, chunk):
            chunk = 1
        super().__init__(inputs, run, BatchProfile(1, streams * chunk, LARGEST_BATCH), streams=streams, chunk=chunk)


def _compile(graph: bytes, precision: str, streams: int) -> ov.CompiledModel:
    core = ov.Core()
    properties = {
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": streams,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    try:
        model = core.read_model(graph)
        if precision == "bf16":
            model = _keep_full_precision(core, model)
        return core.compile_model(model, "CPU", properties)
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


def _infer(
    request: ov.InferRequest, images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]
) -> list[np.ndarray]:
    for name, values in (("images", images), ("head_weights", heads[0]), ("head_biases", heads[1])):
        request.set_tensor(name, ov.Tensor(np.ascontiguousarray(values), shared_memory=True))
    try:
        request.infer()
    except RuntimeError as error:
        msg = f"OpenVINO failed on {len(images)} images ({error}): expected it to compute; restart the process"
        raise DeviceError(msg) from error
    return [request.get_tensor(name).data.copy() for name in names]


def _is_batch_invariant(run: Runner, inputs: tuple[TensorSpec, ...], chunk: int) -> bool:
    """Whether an image's numbers are to the last bit the same alone and in a chunk.

    They are where the kernels sum each output in one order whatever the batch, which is so on the processors tried;
    it is tried again here, since nobody promises it.
    """
    rng = np.random.default_rng(0)
    shape = (chunk, *(side or 1 for side in inputs[0].shape[1:]))
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    channels = inputs[1].shape[0] or 1
    heads = rng.normal(0, 0.05, (channels, HEAD_GROUP)).astype(np.float32), np.zeros(HEAD_GROUP, np.float32)
    names = ["evidence", "pooled", "locations"]
    together = run(images, heads, names)
    return all(
        np.array_equal(alone[0], whole[index])
        for index in (0, chunk // 2, chunk - 1)
        for alone, whole in zip(run(images[index : index + 1], heads, names), together, strict=True)
    )


def _spec(port: ov.ConstOutput) -> TensorSpec:
    shape = tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape())
    return TensorSpec(
        port.get_any_name(), shape, {"u8": "uint8", "f32": "float32"}[port.get_element_type().get_type_name()]
    )
