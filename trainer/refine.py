"""An earlier training set with new labels: what inspectors said joins what a bundle was trained on.

The featurizer stays the bundle's own, so that both can be served side by side and no feature is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from engine.bundle import open_bundle, read_report
from engine.locations import shown
from trainer import training_set
from trainer.archives import Limits, show
from trainer.errors import LabelError, SourceError
from trainer.folder import read_file
from trainer.labels import Labelling, Sample
from trainer.reviews import read_reviews
from trainer.sources import Item, Source, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engine.bundle import Bundle
    from trainer.progress import Step
    from trainer.reviews import Review

FOLDER = "reviews"
"""First part of the names of reviewed images; `reviews-2` and so on when a refined bundle is refined again."""


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """What to train on.

    Attributes:
        folders: folder of each review file by its name's first part, for the bundle to remember.
        told: how many labels are new, and how many were changed; plain values.
    """

    bundle: Bundle
    source: Source
    labelling: Labelling
    folders: Mapping[str, str]
    told: Mapping[str, Any]


def open_refined(
    location: str,
    reviews: Path,
    source_location: str | None,
    *,
    at: Path | None = None,
    limits: Limits | None = None,
    tell: Callable[[Step], None] = lambda _: None,
) -> Refined:
    """Open a bundle's training set again, with the reviews' labels.

    Args:
        location: of the bundle.
        at: the copy on this machine of what lies there, where that is a URL.
        reviews: see `trainer.reviews`.
        source_location: where the earlier images are now; None: where they were.
        limits: how much the reviewed images may hold.
        tell: told how far fetching is.

    Raises:
        BundleError: the bundle cannot be opened, or does not say what it was trained on.
        InputError: the reviews cannot be used, or images of the earlier training set are gone.
    """
    bundle = open_bundle(location, at=at)
    members = training_set.from_csv(read_report(location, training_set.NAME, at=at), f"bundle {shown(location)}")
    rows, notes = read_reviews(reviews, bundle.classes)
    folders: dict[str, str] = dict(bundle.about.get("review_folders", {}))
    own = FOLDER if not folders else f"{FOLDER}-{len(folders) + 1}"
    folders[own] = str(reviews.parent.absolute())
    where = source_location or str(bundle.about["source"])
    try:
        base = open_source(where, tell=tell)
    except SourceError as error:
        earlier = shown(location)
        msg = f"the images that bundle {earlier} was trained on are needed: {error}; say where they are now with SOURCE"
        raise SourceError(msg) from error
    try:
        source = _Joined(base, folders, limits or Limits())
        samples, told = _joined(members, rows, own, source)
        source.keep(sample.name for sample in samples)
    except BaseException:
        base.close()
        raise
    classes = bundle.classes
    notes = (*bundle.about.get("label_notes", ()), *notes)
    labelling = Labelling(samples, classes.passed, classes.failed, (), "reviews", notes)
    return Refined(bundle, source, labelling, folders, {"bundle": bundle.digest, "rows": len(rows), **told})


def _joined(
    members: Sequence[training_set.Member], rows: Sequence[Review], folder: str, source: _Joined
) -> tuple[tuple[Sample, ...], dict[str, int]]:
    """Every sample with its last label. Equal bytes are one image, whatever its name."""
    samples = {member.sample.name: member.sample for member in members}
    names = {member.sha256: member.sample.name for member in members}
    _refuse_gone(samples, source)
    count = {"new": 0, "relabelled": 0, "confirmed": 0}
    for row in rows:
        name = f"{folder}/{row.file}"
        if source.has(name):
            name = names.setdefault(sha256(source.read(name)).hexdigest(), name)
        elif row.file in samples:
            name = row.file
        else:
            msg = (
                f"review file: line {row.line} names {show(row.file)}, which is neither a file in the review file's "
                "folder nor the name of an image that was trained on; put the image there or correct the row"
            )
            raise LabelError(msg)
        earlier = samples.get(name)
        if earlier is None:
            count["new"] += 1
            samples[name] = Sample(name, row.label, row.is_defect, row.group, row.extra)
        else:
            count["confirmed" if earlier.is_defect == row.is_defect else "relabelled"] += 1
            extra = {**earlier.extra, **row.extra}
            samples[name] = replace(earlier, label=row.label, is_defect=row.is_defect, extra=extra)
    return tuple(samples[name] for name in sorted(samples)), count


def _refuse_gone(names: Mapping[str, object], source: _Joined) -> None:
    gone = [name for name in names if not source.has(name)]
    if gone:
        msg = (
            f"{len(gone)} of {len(names)} images of the earlier training set are not in {source.origin} any more, such "
            f"as {show(gone[0])}: expected all of them; say where they are now with SOURCE"
        )
        raise SourceError(msg)


class _Joined:
    """The earlier source and folders of reviewed images as one `Source`; only what is kept is listed."""

    def __init__(self, base: Source, folders: Mapping[str, str], limits: Limits) -> None:
        self._base = base
        self._folders = {name: Path(folder).resolve() for name, folder in folders.items()}
        self._limits = limits
        self._sizes = {item.name: item.size_bytes for item in base.items()}
        self._kept: list[Item] = []
        self.origin = base.origin
        self.notes: Sequence[str] = ()

    def keep(self, names: Iterable[str]) -> None:
        """List these and nothing else."""
        self._kept = [Item(name, self._size(name)) for name in names]

    def has(self, name: str) -> bool:
        """Whether `read` knows it."""
        path = self._path(name)
        return name in self._sizes if path is None else path.is_file()

    def items(self) -> Sequence[Item]:
        """What is kept."""
        return self._kept

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None] = lambda _: None) -> None:
        """The earlier images, where they are elsewhere."""
        self._base.fetch([name for name in names if self._path(name) is None], tell)

    def read(self, name: str) -> bytes:
        """From where it lies. Raises MemberError."""
        path = self._path(name)
        if path is None:
            return self._base.read(name)
        return read_file(path, self._limits.max_member_bytes)

    def groups_csv(self) -> str | None:
        """None: the labels are known."""
        return None

    def close(self) -> None:
        """Close the earlier source."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, name: str) -> Path | None:
        """Of a reviewed image; None: it is the earlier source's."""
        top, _, rest = name.partition("/")
        if top not in self._folders or name in self._sizes:
            return None
        folder = self._folders[top]
        path = (folder / rest).resolve()
        return path if path.is_relative_to(folder) else folder / "outside"  # which is not there: nothing to read

    def _size(self, name: str) -> int:
        path = self._path(name)
        return self._sizes[name] if path is None else path.stat().st_size
