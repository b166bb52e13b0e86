"""Which bundle judges which station, and where a station differs from its bundle. Pure: text in, values out.

A routing file is TOML. Routes are tried in order and the first whose glob matches the station serves it:

    [[route]]
    station = "press-*"
    bundle = "bundles/housings"        # beside this file, unless absolute or a URL; may be pinned: …@sha256:DIGEST
    roi = [0.25, 0.1, 0.75, 0.9]       # left, top, right, bottom as fractions of the upright image
    threshold = 0.4
    review_band = [0.3, 0.5]

    [[route]]
    station = "weld"                   # without a bundle: the one of `--bundle`, with what is said here instead
    threshold = 0.2
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from consumer.errors import SettingsError
from engine.errors import InputError
from engine.locations import is_url, shown
from engine.prediction import OperatingPoint
from engine.specs import Region

if TYPE_CHECKING:
    from pathlib import Path

    from engine.specs import ImageSpec

_KEYS = ("station", "bundle", "roi", "threshold", "review_band")
_REGION_SIDES = 4
_BAND_ENDS = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """One route of the file: for the stations that match, and that no earlier one matched.

    Attributes:
        station: a glob as in a shell: `*`, `?`, `[abc]`. Upper and lower case differ.
        bundle: location of the bundle.
        region: what is cut out instead of the bundle's own region of interest; None: that one.
        threshold, review_band: instead of those of the bundle's operating point; None: those.
    """

    station: str
    bundle: str
    region: Region | None = None
    threshold: float | None = None
    review_band: tuple[float, float] | None = None

    @property
    def has_own_point(self) -> bool:
        """Whether what is said here decides, at whatever station: it outranks what the bundle has for a station."""
        return self.threshold is not None or self.review_band is not None

    def image_spec(self, own: ImageSpec) -> ImageSpec:
        """The bundle's image spec as it serves here."""
        return own if self.region is None else replace(own, region=self.region)

    def operating_point(self, own: OperatingPoint) -> OperatingPoint:
        """The bundle's operating point as it serves here.

        Raises:
            SettingsError: the threshold would lie outside the review band: a part could then be passed with a higher
                defect probability than one that is looked at.
        """
        if not self.has_own_point:
            return own
        point = OperatingPoint(
            own.threshold if self.threshold is None else self.threshold,
            own.review_band if self.review_band is None else self.review_band,
        )
        low, high = point.review_band
        if low < high and not low <= point.threshold <= high:
            msg = (
                f"route for station {self.station!r} puts threshold {point.threshold:g} outside the review band "
                f"{low:g} to {high:g} of bundle {shown(self.bundle)}: expected it inside; give both threshold and "
                "review_band"
            )
            raise SettingsError(msg)
        return point


@dataclass(frozen=True, slots=True)
class Routing:
    """Routes in the order in which they are tried."""

    rules: tuple[Rule, ...]

    def rule(self, station: str) -> Rule | None:
        """The first that matches; None: nobody judges this station."""
        return next((rule for rule in self.rules if fnmatchcase(station, rule.station)), None)


def one_bundle(bundle: str) -> Routing:
    """All stations to one bundle."""
    return Routing((Rule("*", bundle),))


def read_routing(path: Path, default: str | None = None) -> Routing:
    """The routes of a file, and behind them the default bundle for all other stations.

    Raises:
        SettingsError: the file cannot be read, or says something that cannot be meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        msg = f"routing file {path} cannot be read: {reason}; expected a TOML file with [[route]] tables"
        raise SettingsError(msg) from error
    return parse_routing(text, path, default)


def parse_routing(text: str, path: Path, default: str | None = None) -> Routing:
    """As `read_routing`, of the text that lies at `path`. Bundles are looked for beside it."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"routing file {path} is not TOML: {error}"
        raise SettingsError(msg) from error
    tables = content.pop("route", None)
    if content or not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        got = f"the unknown key {next(iter(content))!r}" if content else "no such table"
        msg = f"routing file {path} has {got}: expected one or more [[route]] tables and nothing else"
        raise SettingsError(msg)
    rules = tuple(
        _rule(table, f"routing file {path}, route {number}", path.parent, default)
        for number, table in enumerate(tables, start=1)
    )
    globs = [rule.station for rule in rules]
    for number, glob in enumerate(globs, start=1):
        if glob in globs[: number - 1]:
            msg = (
                f"routing file {path}, route {number}, is for station {glob!r} again: expected each once, for the "
                "first that matches serves; remove one"
            )
            raise SettingsError(msg)
    return Routing(rules if default is None else (*rules, Rule("*", default)))


def _rule(table: dict[str, Any], where: str, folder: Path, default: str | None) -> Rule:
    """One table as a rule."""
    odd = sorted(set(table) - set(_KEYS))
    if odd:
        msg = f"{where}, has the unknown key {odd[0]!r}: expected some of {', '.join(_KEYS)}"
        raise SettingsError(msg)
    station = table.get("station")
    if not isinstance(station, str) or not station:
        msg = f'{where}, has station {station!r}: expected a station\'s name or a glob, for example "press-*"'
        raise SettingsError(msg)
    where = f"{where} (station {station!r})"
    bundle = table.get("bundle", default)
    if not isinstance(bundle, str) or not bundle:
        got = "no bundle" if bundle is None else f"bundle {bundle!r}"
        msg = f"{where}, has {got}: expected a folder or zip, or --bundle for all routes that name none"
        raise SettingsError(msg)
    return Rule(
        station,
        _located(bundle, folder) if "bundle" in table else bundle,
        _region(table.get("roi"), where),
        _number(table.get("threshold"), where, "threshold"),
        _band(table.get("review_band"), where),
    )


def _located(bundle: str, folder: Path) -> str:
    """A URL as it is; a path from the file's folder."""
    return bundle if is_url(bundle) or bundle.startswith("file://") else str(folder / bundle)


def _region(value: object, where: str) -> Region | None:
    """Four fractions."""
    if value is None:
        return None
    try:
        return Region(*_numbers(value, _REGION_SIDES))
    except (InputError, ValueError) as error:
        reason = str(error) if isinstance(error, InputError) else f"got {value!r}"
        msg = f"{where}, has an unusable roi: {reason}; expected [left, top, right, bottom] as fractions of the image"
        raise SettingsError(msg) from error


def _band(value: object, where: str) -> tuple[float, float] | None:
    """Low and high."""
    if value is None:
        return None
    try:
        low, high = _numbers(value, _BAND_ENDS)
        if not 0 <= low <= high <= 1:
            raise ValueError  # noqa: TRY301 - one message for all that is no band
    except ValueError as error:
        msg = f"{where}, has review_band {value!r}: expected [low, high] with 0 <= low <= high <= 1"
        raise SettingsError(msg) from error
    return low, high


def _number(value: object, where: str, key: str) -> float | None:
    """A probability."""
    if value is None:
        return None
    try:
        (number,) = _numbers([value], 1)
        if not 0 <= number <= 1:
            raise ValueError  # noqa: TRY301 - one message for all that is no probability
    except ValueError as error:
        msg = f"{where}, has {key} {value!r}: expected a number from 0 to 1"
        raise SettingsError(msg) from error
    return number


def _numbers(value: object, count: int) -> list[float]:
    """So many numbers; ValueError where it is anything else. True is no number."""
    if not isinstance(value, list) or len(value) != count:
        raise ValueError
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        raise ValueError
    return [float(item) for item in value]
