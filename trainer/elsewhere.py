"""Whether other machines featurize: what training asks, without knowing which."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec
    from trainer.featurize import Row
    from trainer.progress import Step
    from trainer.sources import Source
    from trainer.spark_settings import SparkSettings


class Elsewhere(Protocol):
    """Other machines that featurize a source's images: read and computed there, taken in here."""

    def rows(
        self, names: Sequence[str], image: ImageSpec, featurizer: FeaturizerSpec, turn: int
    ) -> Iterator[Row | str]:
        """The rows of images, or the reason why one is set aside, in the order of the names; every bit as it is here.

        Raises:
            WorkError: the others cannot be used, or did not do it.
        """

    def forget(self) -> None:
        """Let them delete what they kept for the case that this training is killed. Raises WorkError."""


@contextlib.contextmanager
def featurizing(
    source: Source, spark: SparkSettings | None, tell: Callable[[Step], None]
) -> Iterator[Elsewhere | None]:
    """The cluster that featurizes a source's images, as long as it is needed; None where this machine does."""
    if spark is None:
        yield None
        return
    from trainer.spark import SparkFeaturizer  # noqa: PLC0415 - Spark is an extra

    with SparkFeaturizer(source, spark, tell) as elsewhere:
        yield elsewhere
