"""Which two classes there are, which of them is the defect, and what belongs together: from names and a CSV file.

Nothing is guessed silently. Where the words do not say which class is the defect, a note says what was taken; where
the files do not say which classes there are, training does not begin.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from trainer.archives import show
from trainer.errors import LabelError
from trainer.group_pattern import group_by_pattern
from trainer.kinds import GROUPS_FILE, IMAGE_SUFFIXES
from trainer.label_csv import DEFAULT_COLUMNS, match_rows, read_groups_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from trainer.label_csv import Columns, Row
    from trainer.sources import Source

MINIMUM_PER_CLASS = 10
"""Fewer images than this cannot be trained on and held out at once."""

CLASSES = 2

GOOD, NO_DEFECTS = "good", "defect"
"""Names of the two classes where the images name neither, or only the good parts."""

How = Literal["folders", "names", "csv", "reviews"]

# fmt: off
PASS_WORDS = frozenset({
    "good", "ok", "okay", "pass", "passed", "normal", "healthy", "intact", "flawless", "clean", "perfect",
    "accept", "accepted", "conform", "conforming", "io", "gut", "gutteil", "bon", "bueno", "buono",
})
FAIL_WORDS = frozenset({
    "fail", "failed", "failure", "bad", "ng", "nok", "nio", "nogood", "notok", "defect", "defects",
    "defective", "reject", "rejected", "rejects", "anomaly", "anomalies", "anomalous", "abnormal", "broken",
    "faulty", "fault", "faults", "damage", "damaged", "scrap", "crack", "cracked", "scratch", "scratched",
    "dent", "dented", "missing", "nonconforming", "def", "schlecht", "schlechtteil", "defekt", "ausschuss",
    "fehler",
})
# fmt: on
NEGATIONS = frozenset({"no", "not", "non", "without", "free", "ohne", "kein", "keine"})

SPLIT_WORDS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "eval"})
"""Folders of other people's splits: looked through, since the split made here must be free of leaks."""

DOTTED_NAME = re.compile(r"(?P<label>[^.]*[^.\d][^.]*)\.\d+\.\w+")
"""`cat.12.jpg`: unmistakably a class and a number."""
NUMBERED_NAME = re.compile(r"(?P<label>.*?[^\W\d])[ _-]+\(?\d+\)?\.\w+")
"""`good_12.jpg`, `good-12.jpg`, `good (12).jpg`: a class only if the words say so, for cameras name files like this."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its class.

    Attributes:
        name: path inside the source.
        label: name of its class.
        is_defect: whether that is the fail class.
        group: images of one group (part, board, shift) never lie on both sides of a split; None: it stands alone.
        extra: further columns of the CSV file, never trained on: for metrics by kind, station or difficulty.
        held_out: on which side of the split it is, where that is known from an earlier training.
    """

    name: str
    label: str
    is_defect: bool
    group: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    held_out: bool | None = None


@dataclass(frozen=True, slots=True)
class Labelling:
    """What a source's names mean.

    Attributes:
        samples: in the order of the names given.
        pass_class, fail_class: names of the two classes.
        skipped: (name, reason) of files that belong to neither class.
        how: where the labels come from.
        notes: what the user should hear, guesses above all.
        good_only: the fail class may have few images or none.
    """

    samples: tuple[Sample, ...]
    pass_class: str
    fail_class: str
    skipped: tuple[tuple[str, str], ...]
    how: How
    notes: tuple[str, ...] = ()
    good_only: bool = False


def label_source(
    source: Source,
    *,
    fail_class: str | None = None,
    groups_file: Path | None = None,
    columns: Columns = DEFAULT_COLUMNS,
    group_pattern: str | None = None,
    minimum_per_class: int = MINIMUM_PER_CLASS,
    good_only: bool = False,
) -> Labelling:
    """Label a source's images: by `groups_file`, else by a `groups.csv` inside the source, else by their names.

    Args:
        source: whose images they are.
        fail_class: see `label_items`.
        groups_file: CSV file on this machine.
        columns: what its columns are called.
        group_pattern: see `trainer.group_pattern`; it takes the place of the groups in a CSV file.
        minimum_per_class: how few images of one class are refused.
        good_only: see `label_items`.

    Raises:
        InputError: the CSV file cannot be read, or `label_items` or `group_by_pattern` refuses.
    """
    notes: tuple[str, ...] = ()
    if groups_file is not None:
        text: str | None = read_groups_file(groups_file)
    else:
        text = source.groups_csv()
        if text is not None:
            notes = (f"the {GROUPS_FILE} inside the source is used; --groups FILE takes another",)
    names = [item.name for item in source.items()]
    try:
        labelling = label_items(
            names,
            fail_class=fail_class,
            groups_csv=text,
            columns=columns,
            minimum_per_class=minimum_per_class,
            good_only=good_only,
        )
    except LabelError as error:  # what was ignored may well be what is missing
        raise LabelError("; ".join([str(error), *source.notes])) from error
    samples = labelling.samples
    if group_pattern is not None:
        samples, told = group_by_pattern(samples, group_pattern)
        notes += told
    return replace(labelling, samples=samples, notes=notes + labelling.notes)


def label_items(
    names: Sequence[str],
    *,
    fail_class: str | None = None,
    groups_csv: str | None = None,
    columns: Columns = DEFAULT_COLUMNS,
    minimum_per_class: int = MINIMUM_PER_CLASS,
    good_only: bool = False,
) -> Labelling:
    """Find the two classes and give every image its own.

    Folders come first: the two folders whose names are words for pass and fail, at whatever depth, else the first
    level with several folders. Files that lie flat are read as `cat.12.jpg`. A CSV file (columns file,label,group,
    further ones are kept in `extra`) gives the labels itself and must agree with folders or names that carry them.

    Args:
        names: posix paths inside the source.
        fail_class: which class is the defect; without it well-known words decide, else the second in the alphabet,
            and a note says so.
        groups_csv: text of the CSV file.
        columns: what its columns are called.
        minimum_per_class: how few images of one class are refused.
        good_only: one class is enough, that of the good parts; there may be any number of defects.

    Raises:
        LabelError: not exactly two classes, too few images of one, or a CSV file that does not fit the images.
    """
    found = _labels_of_names(names)
    rows: Mapping[str, Row] = {}
    if groups_csv is not None:
        rows, notes = match_rows(names, groups_csv, columns)
        found = _labels_of_rows(names, rows, found, notes)
    if good_only:
        found = _one_class(names, found, fail_class)
    labels, classes = _merge_spellings(found.labels)
    if good_only and len(classes) == 1:
        (own,) = classes
        classes[fail_class or NO_DEFECTS] = 0
        fail_class = fail_class or NO_DEFECTS
        _refuse_defects_alone(own)
    _refuse_classes(classes, found.how, names)
    pass_class, failing, guess = _which_fails(sorted(classes), fail_class, is_certain=found.is_certain)
    _refuse_few({pass_class: classes[pass_class]} if good_only else classes, minimum_per_class)
    samples = tuple(
        Sample(name, labels[name], labels[name] == failing, **_from_row(rows.get(name)))
        for name in names
        if name in labels
    )
    skipped = tuple((name, found.skipped[name]) for name in names if name in found.skipped)
    return Labelling(samples, pass_class, failing, skipped, found.how, (*found.notes, *guess), good_only)


@dataclass(frozen=True, slots=True)
class _Found:
    """Labels and where they come from; `is_certain`: these words are classes, whatever they mean."""

    labels: dict[str, str]
    skipped: dict[str, str]
    how: How
    notes: tuple[str, ...] = ()
    is_certain: bool = True


def _one_class(names: Sequence[str], found: _Found, fail_class: str | None) -> _Found:
    """What is found where only good parts may be there: no defect without a word, a CSV file or the user that says so.

    `lot1/` and `lot2/`, `cam1_001.jpg` and `cam2_001.jpg` are then lots and cameras, not classes.
    """
    classes = {label.casefold() for label in found.labels.values()}
    if found.how == "csv":
        return replace(found, is_certain=False)
    is_said = fail_class is not None and len(classes) > 1
    if is_said or any(_meaning(label) for label in classes):
        return found
    parents = {PurePosixPath(name).parent.name for name in names}
    own = parents.pop() if len(parents) == 1 else ""
    note = "no name says defect: all images are taken as good parts; if those of one class are not, give --fail-class"
    notes = (*found.notes, note) if len(classes) > 1 else found.notes
    return _Found(dict.fromkeys(names, own or GOOD), {}, found.how, notes)


def _refuse_defects_alone(label: str) -> None:
    """A single class must not be that of the defects."""
    if _meaning(label) == "fail":
        msg = f"the only class is {label!r}, which says defect: expected good parts, for example in a folder good/"
        raise LabelError(msg)


def _from_row(row: Row | None) -> dict[str, Any]:
    """What a CSV row adds to a sample."""
    return {} if row is None else {"group": row.group, "extra": row.extra}


def _labels_of_names(names: Sequence[str]) -> _Found:
    """Labels from the folders where there are several, else from the file names."""
    parts = {name: PurePosixPath(name).parts for name in names}
    level = _class_level([own[:-1] for own in parts.values()])
    if level is None:
        return _labels_of_files(names)
    labels = {name: own[level] for name, own in parts.items() if len(own) > level + 1}
    skipped = {name: "lies beside the class folders" for name in names if name not in labels}
    above = sorted({part.casefold() for own in parts.values() for part in own[:level]} & SPLIT_WORDS)
    notes = (f"folders {', '.join(above)} are looked through: the split is made here",) if above else ()
    return _Found(labels, skipped, "folders", notes)


def _class_level(folders: Sequence[tuple[str, ...]]) -> int | None:
    """Depth at which folders name the classes; None where no depth has several folders."""
    depth = max((len(own) for own in folders), default=0)
    levels = [{own[level].casefold() for own in folders if len(own) > level} for level in range(depth)]
    for level, found in enumerate(levels):
        if len(found) == CLASSES and {_meaning(name) for name in found} == {"pass", "fail"}:
            return level
    several = [level for level, found in enumerate(levels) if len(found) > 1 and not found <= SPLIT_WORDS]
    return several[0] if several else None


def _labels_of_files(names: Sequence[str]) -> _Found:
    """Labels from names such as `cat.12.jpg`, else from `good_12.jpg`, else the one folder that holds everything."""
    for pattern in (DOTTED_NAME, NUMBERED_NAME):
        matches = {name: pattern.fullmatch(PurePosixPath(name).name) for name in names}
        labels = {name: match["label"] for name, match in matches.items() if match}
        if len({label.casefold() for label in labels.values()}) >= CLASSES:
            skipped = {name: "its name gives no class, as cat.12.jpg does" for name in names if name not in labels}
            return _Found(labels, skipped, "names", is_certain=pattern is DOTTED_NAME)
    # Too few classes whatever is returned: the folder's name makes the better message.
    labels = {name: PurePosixPath(name).parent.name for name in names if "/" in name}
    return _Found(labels, {}, "folders")


def _merge_spellings(labels: Mapping[str, str]) -> tuple[dict[str, str], Counter[str]]:
    """`Good` and `good` are one class, spelled as seen first; and the number of images of each."""
    spelling: dict[str, str] = {}
    for label in labels.values():
        spelling.setdefault(label.casefold(), label)
    merged = {name: spelling[label.casefold()] for name, label in labels.items()}
    return merged, Counter(merged.values())


def _meaning(label: str) -> Literal["pass", "fail"] | None:
    """What a class name says by well-known words: `not_ok` is a fail, `no_defect` a pass, `screw` neither."""
    tokens = re.findall(r"[^\W_]+", label.casefold())
    joined = "".join(tokens)
    if joined in PASS_WORDS:
        return "pass"
    if joined in FAIL_WORDS:
        return "fail"
    is_pass, is_fail = not PASS_WORDS.isdisjoint(tokens), not FAIL_WORDS.isdisjoint(tokens)
    if is_pass == is_fail:
        return None
    is_negated = not NEGATIONS.isdisjoint(tokens)
    return "fail" if is_fail != is_negated else "pass"


def _which_fails(classes: list[str], wanted: str | None, *, is_certain: bool) -> tuple[str, str, tuple[str, ...]]:
    """(pass class, fail class, notes) of two classes in alphabetical order."""
    first, second = classes
    if wanted is not None:
        chosen = [label for label in classes if label.casefold() == wanted.casefold()]
        if not chosen:
            msg = f"fail class {wanted!r} is not among the classes: expected {first!r} or {second!r}"
            raise LabelError(msg)
        return (second if chosen[0] == first else first), chosen[0], ()
    meanings = (_meaning(first), _meaning(second))
    if meanings in {("pass", "fail"), (None, "fail"), ("pass", None)}:
        return first, second, ()
    if meanings in {("fail", "pass"), ("fail", None), (None, "pass")}:
        return second, first, ()
    ask = f"say which one is the defect with --fail-class {first} or --fail-class {second}"
    if meanings != (None, None) or not is_certain:
        msg = f"which of the classes {first!r} and {second!r} is the defect is unclear: {ask}"
        raise LabelError(msg)
    return first, second, (f"{second!r} is taken as the fail class (second in the alphabet): if that is wrong, {ask}",)


def _refuse_classes(classes: Counter[str], how: str, names: Sequence[str]) -> None:
    """Exactly two classes."""
    if len(classes) == CLASSES:
        return
    got = _counts(classes)
    if not classes:
        msg = f"no class can be told from the {len(names)} file names, such as {_some(names)}"
    elif len(classes) == 1:
        msg = f"only one class: {got}; where the line has seen no defect yet, train on good parts with --mode good-only"
    else:
        msg = f"{len(classes)} classes from {how}: {got}"
    msg += (
        "; expected exactly two: folders such as good/ and fail/, names such as cat.12.jpg and dog.7.jpg, or --groups"
    )
    raise LabelError(msg)


def _refuse_few(classes: Mapping[str, int], minimum: int) -> None:
    """Enough images of each class."""
    few = {label: minimum - count for label, count in classes.items() if count < minimum}
    if few:
        missing = " and ".join(f"{count} more of {label!r}" for label, count in sorted(few.items()))
        msg = f"too few images: {_counts(classes)}; expected at least {minimum} of each class: add {missing}"
        raise LabelError(msg)


def _counts(classes: Mapping[str, int]) -> str:
    """The classes with their numbers of images, at most ten of them."""
    listed = [f"{show(label)} ({count} image{'' if count == 1 else 's'})" for label, count in sorted(classes.items())]
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")  # noqa: PLR2004 - both say ten


def _some(names: Iterable[str]) -> str:
    """Up to three names for a message."""
    return ", ".join(show(name) for name in list(names)[:3])


def _labels_of_rows(names: Sequence[str], rows: Mapping[str, Row], found: _Found, notes: Sequence[str]) -> _Found:
    """Labels where a CSV file is given; `found` fills empty cells and must not contradict."""
    missing = [name for name in names if name not in rows]
    images = [name for name in missing if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if images:
        msg = (
            f"groups file: {len(images)} of {len(names)} images have no row, such as {_some(images)}; expected a row "
            "for each image: add them, or take the images out"
        )
        raise LabelError(msg)
    labels = {name: row.label or found.labels.get(name, "") for name, row in rows.items()}
    without = [name for name, label in labels.items() if not label]
    if without:
        msg = f"groups file: {len(without)} rows have no label, and the path gives none, such as {_some(without)}"
        raise LabelError(msg)
    _refuse_contradictions(labels, rows, found)
    return _Found(labels, dict.fromkeys(missing, "has no row in the groups file"), "csv", tuple(notes))


def _refuse_contradictions(labels: Mapping[str, str], rows: Mapping[str, Row], found: _Found) -> None:
    """A path that carries the name of a class must carry the class of its row."""
    classes = {label.casefold() for label in labels.values()}
    for name, label in labels.items():
        said = {part.casefold() for part in PurePosixPath(name).parts[:-1]} | {found.labels.get(name, "").casefold()}
        others = (said & classes) - {label.casefold()}
        if others and label.casefold() not in said:
            msg = (
                f"groups file: line {rows[name].line} says {label!r} for {show(name)}, whose path says "
                f"{others.pop()!r}; correct the row or move the image"
            )
            raise LabelError(msg)
