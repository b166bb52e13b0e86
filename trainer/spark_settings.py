"""What `framegate train --on spark` was asked for. Needs no Spark."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NEEDED = ("pyspark", "pandas", "pyarrow", "fsspec")


@dataclass(frozen=True, slots=True)
class SparkSettings:
    """Where and how.

    Attributes:
        master: Spark's URL of the cluster.
        location: where the executors read, as the user gave it; it may hold a key, and goes to them alone.
        folder: path or URL that this machine and every executor see.
        conf: further settings of Spark.
        wait_s: how long the first task may wait for an executor.
    """

    master: str
    location: str = field(repr=False)
    folder: str = field(repr=False)
    conf: Mapping[str, str] = field(default_factory=dict, repr=False)
    wait_s: float = 120.0

    def __str__(self) -> str:
        """What a report tells of it: nothing that may hold a key."""
        return self.master

    @classmethod
    def parse(
        cls,
        on: str,
        master: str | None,
        folder: str | None,
        conf: Sequence[str],
        *,
        source: str | None,
        refine: str | None,
        out: Path,
    ) -> Self | None:
        """Of the command's options; None where all is computed here.

        Raises:
            InputError: an option that needs another one, a setting that is none, or Spark is not installed.
        """
        if on != "spark":
            given = {"--master": master, "--spark-folder": folder, "--spark-conf": conf}
            odd = [name for name, value in given.items() if value]
            if odd:
                msg = f"{odd[0]} was given without --on spark: expected both, or neither; add --on spark"
                raise InputError(msg)
            return None
        if not master:
            msg = "--on spark needs a cluster: expected --master, for example --master spark://host:7077"
            raise InputError(msg)
        if refine is not None or source is None:
            msg = "--on spark was given with --refine: what it adds is featurized here; leave --on spark out"
            raise InputError(msg)
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            msg = (
                f"--on spark needs {', '.join(missing)}, which is not here: pip install 'framegate[spark]', and Java 17"
            )
            raise InputError(msg)
        return cls(master, _absolute(source), _absolute(folder or f"{out}.spark"), dict(map(_setting, conf)))


def _absolute(location: str) -> str:
    """Executors run in folders of their own."""
    return location if "://" in location else str(Path(location).absolute())


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("spark."):
        msg = f"--spark-conf {text!r} is no setting of Spark: expected spark.NAME=VALUE"
        raise InputError(msg)
    return name, value
