"""The images a training run uses: labelled, decodable, each content once, and what stays together."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import FrameError
from engine.image_header import read_header
from engine.specs import ImageSpec, Region, nearest_side
from trainer import near_duplicates
from trainer.copies import without_copies
from trainer.errors import LabelError, MemberError
from trainer.features import FeatureSet, extract
from trainer.labels import MINIMUM_PER_CLASS
from trainer.sketches import Sketcher
from trainer.split import group_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.featurizer import FeaturizerSpec
    from trainer.copies import Copies
    from trainer.feature_store import FeatureCache
    from trainer.labels import Labelling, Sample
    from trainer.sources import Source

DEFAULT_SIDE_PX = 224
_PROBED = 32


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """n samples that could be decoded, in one order.

    Attributes:
        defect: (n,) bool.
        groups: (n,) what stays together.
        skipped: (name, why) of files that are no images.
        notes: what the user must hear.
        cache: where features are kept, open as long as this is used.
        copies: files with the bytes of others, which are no samples.
        near_duplicates: what was found, see `near_duplicates.summary`; empty where groups were given.
    """

    source: Source
    samples: tuple[Sample, ...]
    defect: np.ndarray
    groups: np.ndarray
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    cache: FeatureCache
    copies: Copies
    near_duplicates: dict[str, Any]

    def extract(
        self,
        image: ImageSpec,
        featurizer: FeaturizerSpec,
        rows: np.ndarray,
        progress: Callable[[int, int], None],
        turn: int = 0,
    ) -> FeatureSet:
        """Features of some rows, in their order; `progress` is called with the images done and their number."""
        names = [self.samples[row].name for row in rows]
        return _extract(self.source, names, image, featurizer, progress, self.cache, turn)


def open_dataset(
    source: Source,
    labelling: Labelling,
    image: ImageSpec,
    featurizer: FeaturizerSpec,
    progress: Callable[[int, int], None],
    cache: FeatureCache,
) -> tuple[Dataset, FeatureSet]:
    """Decode every labelled file once; the dataset and its features.

    Raises:
        LabelError: too few images of a class can be decoded.
        WorkError: the features do not fit on the disk.
    """
    names = [sample.name for sample in labelling.samples]
    features = _extract(source, names, image, featurizer, progress, cache)
    everything = [labelling.samples[i] for i in features.kept]
    copies = without_copies(everything, features.sha256)
    skipped, features = features.skipped, features.take(copies.kept)
    samples = tuple(everything[i] for i in copies.kept)
    defect = np.array([sample.is_defect for sample in samples], bool)
    _refuse_too_few(defect, labelling, skipped)
    groups, found = _groups(samples, features, defect)
    return Dataset(
        source,
        samples,
        defect,
        groups,
        (*labelling.skipped, *skipped),
        (*source.notes, *labelling.notes, *copies.notes, *found.get("notes", [])),
        cache,
        copies,
        found,
    ), features


def median_size(source: Source, samples: Sequence[Sample], region: Region) -> tuple[float, float]:
    """(width, height) in pixels of the median region of interest, from the headers of up to 32 images."""
    sides = []
    for sample in samples[:: max(1, len(samples) // _PROBED)]:
        with contextlib.suppress(FrameError, MemberError):  # set aside when all are decoded, with its reason
            header = read_header(source.read(sample.name))
            x0, y0, x1, y1 = region.pixels(header.width_px, header.height_px)
            sides.append((x1 - x0, y1 - y0))
    width, height = np.median(np.array(sides or [(DEFAULT_SIDE_PX, DEFAULT_SIDE_PX)]), axis=0)
    return float(width), float(height)


def scaled(size_px: tuple[float, float], longer_px: float, region: Region) -> ImageSpec:
    """The input whose longer side comes nearest to `longer_px`; the aspect is kept as the stride allows."""
    factor = longer_px / max(size_px)
    width_px, height_px = (nearest_side(round(side * factor)) for side in size_px)
    return ImageSpec(width_px, height_px, region=region)


def _extract(
    source: Source,
    names: Sequence[str],
    image: ImageSpec,
    featurizer: FeaturizerSpec,
    progress: Callable[[int, int], None],
    cache: FeatureCache,
    turn: int = 0,
) -> FeatureSet:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, len(names))

    return extract(names, source.read, image, featurizer, turn=turn, progress=advance, cache=cache)


def _groups(samples: Sequence[Sample], features: FeatureSet, defect: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """(n,) what stays together: by the groups that were given or, where there are none, by what looks the same."""
    given = [sample.group for sample in samples]
    if any(given):
        return group_ids(given, features.sha256), {}
    sketches = Sketcher.of(features.channels).sketch(features.channels)
    found = near_duplicates.find(sketches, defect)
    told = near_duplicates.summary(found, [sample.name for sample in samples], defect)
    return group_ids([str(cluster) for cluster in found.clusters], features.sha256), told


def _refuse_too_few(defect: np.ndarray, labelling: Labelling, skipped: Sequence[tuple[str, str]]) -> None:
    counts = {labelling.pass_class: int((~defect).sum())}
    if not labelling.good_only:
        counts[labelling.fail_class] = int(defect.sum())
    for name, count in counts.items():
        if count < MINIMUM_PER_CLASS:
            first = f"; first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            msg = (
                f"class {name!r} has {count} images that can be decoded: expected at least {MINIMUM_PER_CLASS}; "
                f"{len(skipped)} files could not be decoded{first}"
            )
            raise LabelError(msg)
