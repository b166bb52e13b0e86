"""The images a training run uses: labelled, decodable, each content once, and what stays together."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import FrameError
from engine.image_header import read_header
from engine.specs import ImageSpec, Region, nearest_side
from trainer.errors import LabelError, MemberError
from trainer.features import FeatureSet, extract
from trainer.labels import MINIMUM_PER_CLASS
from trainer.split import contradictions, first_of_each, group_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.featurizer import FeaturizerSpec
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
    """

    source: Source
    samples: tuple[Sample, ...]
    defect: np.ndarray
    groups: np.ndarray
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

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
        return _extract(self.source, names, image, featurizer, progress, turn)


def open_dataset(
    source: Source,
    labelling: Labelling,
    image: ImageSpec,
    featurizer: FeaturizerSpec,
    progress: Callable[[int, int], None],
) -> tuple[Dataset, FeatureSet]:
    """Decode every labelled file once; the dataset and its features.

    Raises:
        LabelError: too few images of a class can be decoded.
        InputError: the features would take too much memory.
    """
    names = [sample.name for sample in labelling.samples]
    features = _extract(source, names, image, featurizer, progress)
    everything = [labelling.samples[i] for i in features.kept]
    chosen, notes = _without_copies(everything, features.sha256)
    skipped, features = features.skipped, features.take(chosen)
    samples = tuple(everything[i] for i in chosen)
    defect = np.array([sample.is_defect for sample in samples], bool)
    _refuse_too_few(defect, labelling, skipped)
    groups = group_ids([sample.group for sample in samples], features.sha256)
    return Dataset(
        source,
        samples,
        defect,
        groups,
        (*labelling.skipped, *skipped),
        (*source.notes, *labelling.notes, *notes),
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
    turn: int = 0,
) -> FeatureSet:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, len(names))

    return extract(names, source.read, image, featurizer, turn=turn, progress=advance)


def _without_copies(samples: Sequence[Sample], sha256: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One of each content, so that no copy stands on both sides of a split; none where its copies disagree.

    Returns:
        Indices of what is left, and what the user must hear about the rest.
    """
    pairs = contradictions([sample.label for sample in samples], sha256)
    disputed = {sha256[index] for _, index in pairs}
    first = first_of_each(sha256)
    left = np.array([index for index in first if sha256[index] not in disputed], np.int64)
    notes = []
    if disputed:
        one, other = pairs[0]
        notes.append(
            f"ATTENTION: {len(disputed)} images lie in both classes and were left out, for example "
            f"{samples[one].name} and {samples[other].name}: one of the two labels is wrong"
        )
    if len(first) < len(samples):
        notes.append(f"{len(samples) - len(first)} files are byte-for-byte copies of others and were left out")
    return left, notes


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
