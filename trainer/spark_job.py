"""What one featurization on Spark is: which images, by which featurizer, cut into which parts. Pure; goes as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Self

from engine.backbone import FeaturizerSpec
from engine.specs import ImageSpec
from engine.watching import SIDE
from trainer.featurize import CHANNELS_DTYPE, row_shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.spark_reading import Entry

PART_BYTES = 32 << 20
"""What a part may take before it is written: an executor holds one of them for each task that it runs."""

MOST_IMAGES = 256
"""A task of some seconds: long against Spark's cost for a task, short against what the loss of an executor costs."""

PARTS_PER_SLOT = 4
"""So that no slot idles long where images differ or a part has to be done again."""


@dataclass(frozen=True, slots=True)
class Job:
    """One featurization.

    Attributes:
        source: what the images are from, without secrets.
        turn: see `trainer.turns`.
        per_part: images in a part; the last one may have fewer.
        identity: what the driver is; see `trainer.spark_identity`.
        probe: (encoded image in base64, digest of the driver's answer to it).
    """

    source: str
    image: ImageSpec
    featurizer: FeaturizerSpec
    turn: int
    per_part: int
    identity: Mapping[str, str]
    probe: tuple[str, str]

    def to_json(self) -> str:
        """For the executors."""
        return json.dumps(
            {
                "source": self.source,
                "image": self.image.to_json(),
                "featurizer": self.featurizer.to_json(),
                "turn": self.turn,
                "per_part": self.per_part,
                "identity": dict(self.identity),
                "probe": list(self.probe),
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote."""
        value = json.loads(text)
        image, featurizer = ImageSpec.from_json(value["image"]), FeaturizerSpec.from_json(value["featurizer"])
        probe, answer = value["probe"]
        return cls(
            value["source"], image, featurizer, value["turn"], value["per_part"], value["identity"], (probe, answer)
        )

    def key(self, entries: Sequence[Entry]) -> str:
        """Digest of everything that decides the features, of what is listed of the images too: what may be resumed.

        An object store's marks change with the content. In a folder an image that was exchanged for one of the same
        size between two tries is not noticed.
        """
        digest = sha256()
        told: dict[str, Any] = {**json.loads(self.to_json()), "per_part": None}
        digest.update(json.dumps(told, sort_keys=True).encode())
        for each in entries:
            digest.update(f"\0{each.name}\0{each.size_bytes}\0{each.mark}".encode())
        return digest.hexdigest()


def row_bytes(image: ImageSpec, featurizer: FeaturizerSpec) -> int:
    """What one image's features take."""
    cells, cell_size = row_shape(image, featurizer)
    return cells * cell_size * CHANNELS_DTYPE.itemsize + 4 * featurizer.pooled_size + SIDE * SIDE


def images_per_part(images: int, slots: int, image: ImageSpec, featurizer: FeaturizerSpec) -> int:
    """So many that every slot has a few parts, none takes more than `PART_BYTES` or `MOST_IMAGES`; at least one."""
    fair = -(-images // (slots * PARTS_PER_SLOT))
    return max(1, min(fair, MOST_IMAGES, PART_BYTES // row_bytes(image, featurizer)))


def parts_of(entries: Sequence[Entry], per_part: int) -> list[Sequence[Entry]]:
    """The images of each part, in order."""
    return [entries[start : start + per_part] for start in range(0, len(entries), per_part)]


def part_file(part: int) -> str:
    """Where a part's features lie in the job's folder."""
    return f"features/part-{part:07d}.parquet"
