"""Labelled samples through the frozen featurizer: decoded as in serving, computed by the same engine code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import MemberError
from trainer.feature_store import FeatureCache
from trainer.featurize import Featurizer, Row, in_order, row_shape
from trainer.shards import RowShape
from trainer.stored_rows import Rows, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec
    from trainer.feature_store import FeatureStore


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """What n images look like apart from their features.

    Attributes:
        levels: (n,) mean grey value.
        noises: (n,) as `image_noise` gives them.
        glances: (n, 64, 64) uint8.
    """

    levels: np.ndarray
    noises: np.ndarray
    glances: Rows

    def take(self, rows: np.ndarray | slice) -> Looks:
        """Those of some images, in the order given."""
        return Looks(self.levels[rows], self.noises[rows], take(self.glances, rows))


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Features of the samples that could be decoded, in the samples' order; what is large may be on the disk.

    Attributes:
        kept: (n,) indices into the samples.
        pooled: (n, d) float32.
        channels: (n, cells, 4 fine + coarse) float16.
        pixels: (n, 2) contrast and detail of each image.
        sha256: (n,) of each image's encoded bytes: equal bytes, equal part.
        skipped: (name, why) of the samples that could not be decoded.
        looks: of each image.
    """

    kept: np.ndarray
    pooled: Rows
    channels: Rows
    pixels: np.ndarray
    sha256: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    looks: Looks

    def take(self, rows: np.ndarray) -> FeatureSet:
        """The features of some rows, in the order given."""
        if len(rows) == len(self.kept) and (rows == np.arange(len(rows))).all():
            return self
        digests = tuple(self.sha256[row] for row in rows)
        return FeatureSet(
            self.kept[rows],
            take(self.pooled, rows),
            take(self.channels, rows),
            self.pixels[rows],
            digests,
            self.skipped,
            self.looks.take(rows),
        )

    def in_memory(self) -> FeatureSet:
        """All of it, off the disk."""
        looks = Looks(self.looks.levels, self.looks.noises, np.asarray(self.looks.glances))
        pooled, channels = np.asarray(self.pooled), np.asarray(self.channels)
        return FeatureSet(self.kept, pooled, channels, self.pixels, self.sha256, self.skipped, looks)


def extract(
    names: Sequence[str],
    read: Callable[[str], bytes],
    image: ImageSpec,
    featurizer: FeaturizerSpec,
    *,
    turn: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    cache: FeatureCache | None = None,
) -> FeatureSet:
    """Read, decode and featurize; what is in the cache already is only read, not decoded.

    Where the cache is filled from elsewhere, images are neither read nor computed here.

    Args:
        names: of the samples.
        read: gives the encoded bytes of one.
        image: says how they become the network's input.
        featurizer: what is computed.
        turn: the view that the network sees, see `trainer.turns`; 0 is the image as it was taken.
        progress: called with the number of samples done since the last call.
        cache: where the features stay, as long as it is open; without one they are all in memory.

    Raises:
        WorkError: the features do not fit on the disk.
    """
    if cache is None:
        with FeatureCache() as own:
            return extract(names, read, image, featurizer, turn=turn, progress=progress, cache=own).in_memory()
    with Featurizer(image, featurizer, turn) as running:
        extraction = Extraction(running, cache.open(running.digest(), shape_of(image, featurizer)))
        if cache.elsewhere is None:
            features = extraction.run(names, read, progress)
        else:
            features = extraction.take_in(names, cache.elsewhere.rows(names, image, featurizer, turn), progress)
    cache.computed += extraction.computed
    cache.found += len(features.kept) - extraction.computed
    return features


def shape_of(image: ImageSpec, featurizer: FeaturizerSpec) -> RowShape:
    """Of the rows of one featurizer at one input size."""
    return RowShape(featurizer.pooled_size, *row_shape(image, featurizer))


class Extraction:
    """One walk over samples: each content is computed once, and only where the store does not have it.

    Attributes:
        computed: images that were.
    """

    def __init__(self, featurizer: Featurizer, store: FeatureStore) -> None:
        """Take what the store has, and have the featurizer compute the rest into it."""
        self._featurizer, self._store = featurizer, store
        self._begun: set[str] = set()
        self._bad: dict[str, str] = {}
        self._unwritten: list[Row] = []
        self._written: Future[None] | None = None
        self.computed = 0

    def run(self, names: Sequence[str], read: Callable[[str], bytes], progress: Callable[[int], None]) -> FeatureSet:
        """Features of the samples; see `extract`. They lie in the store, and are to be used while it is open."""
        self._store.refuse_without_room(max(0, len(names) - len(self._store)))
        digests: list[str] = []
        kept: list[int] = []
        skipped: list[tuple[str, str]] = []
        of_names: list[str] = []

        def begin(name: str) -> Future[Row | str] | str:
            try:
                payload = read(name)  # here, not in a thread: a source belongs to one thread
            except MemberError as error:
                of_names.append("")
                return str(error)
            of_names.append(sha256(payload).hexdigest())
            if of_names[-1] in self._store or of_names[-1] in self._begun:
                return ""
            self._begun.add(of_names[-1])
            return self._featurizer.submit(payload, of_names[-1])

        with ThreadPoolExecutor(1, thread_name_prefix="features") as writer:
            for index, answer in enumerate(in_order(map(begin, names), self._featurizer.ahead)):
                why = self._take(of_names[index], answer, writer)
                if why:
                    skipped.append((names[index], why))
                else:
                    kept.append(index)
                    digests.append(of_names[index])
                progress(1)
            self._write(writer)
            self._wait()
        return self._gathered(kept, digests, skipped)

    def take_in(self, names: Sequence[str], rows: Iterable[Row | str], progress: Callable[[int], None]) -> FeatureSet:
        """The same from rows, or reasons, that others computed, one for each name in its order."""
        self._store.refuse_without_room(max(0, len(names) - len(self._store)))
        digests: list[str] = []
        kept: list[int] = []
        skipped: list[tuple[str, str]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="features") as writer:
            for index, row in enumerate(rows):
                if isinstance(row, str):
                    skipped.append((names[index], row))
                else:
                    if row.sha256 not in self._store and row.sha256 not in self._begun:
                        self._begun.add(row.sha256)
                        self._take(row.sha256, row, writer)
                    kept.append(index)
                    digests.append(row.sha256)
                progress(1)
            self._write(writer)
            self._wait()
        return self._gathered(kept, digests, skipped)

    def _take(self, digest: str, answer: Row | str, writer: ThreadPoolExecutor) -> str:
        """Keep a row; the reason why an image is set aside, or nothing."""
        if isinstance(answer, Row):
            self.computed += 1
            self._unwritten.append(answer)
            if len(self._unwritten) >= self._store.shard_rows:
                self._write(writer)
            return ""
        if answer:
            self._bad[digest] = answer
        return answer or self._bad.get(digest, "")

    def _write(self, writer: ThreadPoolExecutor) -> None:
        """Beside what is computed: a disk takes its time to say that it has something."""
        self._wait()
        rows, self._unwritten = self._unwritten, []
        if rows:
            self._written = writer.submit(self._store.append, rows)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _gathered(self, kept: Sequence[int], digests: Sequence[str], skipped: Sequence[tuple[str, str]]) -> FeatureSet:
        statistics = self._store.statistics(digests)
        return FeatureSet(
            np.array(kept, np.int64),
            self._store.rows("pooled", digests),
            self._store.rows("channels", digests),
            statistics[:, :2],
            tuple(digests),
            tuple(skipped),
            Looks(statistics[:, 2], statistics[:, 3], self._store.rows("glances", digests)),
        )
