"""Who judges whom at one time: the routes, the bundles they name, and the engines those run on. Loaded, then frozen.

A lineup is never changed: another one is loaded beside it, taking over what is the same, and put in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consumer.errors import SettingsError
from consumer.events import ModelRef
from consumer.lanes import Lane
from consumer.ports import Route
from consumer.routing import Routing, Rule, one_bundle, read_routing
from engine.bundle import bundle_path, bundle_url, open_bundle
from engine.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.bundle_cache import BundleCache
    from engine.heads import Head
    from engine.specs import ImageSpec
    from engine.watching import StreamLimits

STATIONS_REMEMBERED = 4096
"""Stations whose route is remembered: globs are tried only for the others."""

Sight = tuple[tuple[str, int, int, int], ...]
"""A folder or file as far as a look tells: (name, inode, size in bytes, time of change in ns) of each file."""

Look = dict[str, Sight]
"""Everything that is watched, by its location."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """What judging needs of a bundle. Its graph is with the engine, its reference images are gone."""

    sight: Sight
    model: ModelRef
    image: ImageSpec
    head: Head
    lane: Lane
    stream: StreamLimits


@dataclass(frozen=True, slots=True, eq=False)
class Seat(Route):
    """A route with what computes it.

    Attributes:
        head: with the operating point that serves here.
        shadow: the candidate as it would judge the same frames; None: there is none.
        shadow_takes_image: the candidate's pixels are the same.
        shadow_is_beside: and its engine too: it is one more column.
    """

    head: Head
    lane: Lane
    shadow: Seat | None = None
    shadow_takes_image: bool = False
    shadow_is_beside: bool = False


class Lineup:
    """Who judges whom. Holds its lanes until `close`."""

    def __init__(self, look: Look, routing: Routing, members: Mapping[str, Member], shadow: str | None) -> None:
        """Give every route its seat.

        Args:
            look: what was seen before anything was loaded.
            routing: the routes.
            members: by location; their lanes are held for this lineup already.
            shadow: the candidate's location among them.

        Raises:
            SettingsError: a route's operating point cannot be.
        """
        self.look = look
        self.members = members
        self.lanes = tuple(dict.fromkeys(member.lane for member in members.values()))
        self._routing = routing
        candidate = None if shadow is None else members[shadow]
        self.seats = {rule: _seat(rule, members[rule.bundle], candidate) for rule in routing.rules}
        self._found: dict[str, Seat | None] = {}

    def find(self, station: str) -> Seat | None:
        """Who judges this station; None: nobody. To be called from one thread at a time."""
        if station not in self._found:
            if len(self._found) >= STATIONS_REMEMBERED:
                self._found.clear()
            rule = self._routing.rule(station)
            self._found[station] = None if rule is None else _at_station(self.seats[rule], rule, station)
        return self._found[station]

    def judges_as(self, other: Lineup) -> bool:
        """Whether both give every station the same verdicts."""
        return self._told() == other._told()

    def _told(self) -> list[tuple[Rule, ModelRef, ModelRef | None]]:
        return [
            (rule, seat.model, None if seat.shadow is None else seat.shadow.model) for rule, seat in self.seats.items()
        ]

    def warm(self, largest: int | None, most: int, *, gently: bool = False) -> int:
        """Compute once in every size of batch that will be scored, on every lane that has not.

        Args:
            largest: images in the largest batch; None: what is worth taking, as measured. Then one policy serves all
                lanes: the largest that one of them finds worth it, as far as all of them take it, since a batch may be
                of one lane's frames alone.
            most: with None, the largest that may be wanted.
            gently: as in `Lane.warm`.

        Returns:
            Images in the largest batch.
        """
        if largest is None:
            bound = min((most, *(lane.largest for lane in self.lanes)))
            worth = (lane.measure(most, gently=gently).worth for lane in self.lanes)
            largest = min(bound, max(worth, default=1))
        for lane in self.lanes:
            lane.warm(largest, gently=gently)
        return largest

    def close(self) -> None:
        """Need the lanes no more."""
        for lane in self.lanes:
            lane.let_go()


class Loader:
    """Loads lineups: bundles are checked, engines are opened where no open one serves."""

    def __init__(
        self,
        open_backend: Callable[[Bundle], Backend],
        *,
        bundle: str | None = None,
        routing: Path | None = None,
        shadow: str | None = None,
        largest: int | None,
        must_agree: bool = True,
        cache: BundleCache | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            open_backend: opens what computes for a bundle, and it serves that bundle.
            bundle: location of the one for all stations that no route matches.
            routing: the file with the routes.
            shadow: location of the candidate.
            largest: images in the largest batch that an engine has to take; None: whatever it takes will do.
            must_agree: a bundle shares an engine that was opened for another one only where it answers as this
                bundle's reference does. To be left out where the engine was asked for by name.
            cache: keeps what is fetched from URLs; None: a URL is refused.
        """
        self._open_backend = open_backend
        self._bundle = bundle
        self._routing = routing
        self._shadow = shadow
        self._largest = largest
        self._must_agree = must_agree
        self._cache = cache

    def look(self) -> Look:
        """What lies at each location now. Only the routing file is opened; a URL's server may keep it waiting."""
        look = {} if self._routing is None else {str(self._routing): sight(self._routing)}
        try:
            routing = self._read_routing()
        except SettingsError:  # told when it is loaded; until it is mended nothing else matters
            return look
        return look | {location: self._sight_of(location) for location in self._locations(routing)}

    def check(self) -> None:
        """See that what is named is there and fits, without opening an engine: before others are started to load it.

        Raises:
            SettingsError, BundleError: as `load`.
        """
        routing = self._read_routing()
        bundles = {location: self._open(location) for location in self._locations(routing)}
        for rule in routing.rules:
            bundle = bundles[rule.bundle]
            rule.operating_point(bundle.head.operating_point)
            rule.image_spec(bundle.image)

    def load(self, before: Lineup | None = None, look: Look | None = None) -> Lineup:
        """A lineup of what lies there now.

        Args:
            before: what is unchanged in it is taken over, and engines that serve are shared.
            look: a look taken a moment ago.

        Raises:
            SettingsError: the routing file or a route in it is wrong, or batches are too large for an engine.
            BundleError: a bundle is not there or not whole.
            RemoteError: a bundle cannot be fetched, and never was.
            GraphError, DeviceError, PlanError, ParityError: an engine cannot be opened on one.
        """
        look = self.look() if look is None else look
        routing = self._read_routing()
        held: list[Lane] = []
        try:
            members = {
                location: self._member(location, look.get(location, ()), before, held)
                for location in self._locations(routing)
            }
            return Lineup(look, routing, members, self._shadow)
        except BaseException:
            for lane in held:
                lane.let_go()
            raise

    def _read_routing(self) -> Routing:
        """The file's routes, or the one bundle for all."""
        if self._routing is not None:
            return read_routing(self._routing, self._bundle)
        if self._bundle is None:
            msg = "no bundle to judge by: expected --bundle, --routing or both"
            raise SettingsError(msg)
        return one_bundle(self._bundle)

    def _locations(self, routing: Routing) -> list[str]:
        """Every bundle that is needed, once."""
        shadow = () if self._shadow is None else (self._shadow,)
        return list(dict.fromkeys((*(rule.bundle for rule in routing.rules), *shadow)))

    def _member(self, location: str, seen: Sight, before: Lineup | None, held: list[Lane]) -> Member:
        """What lies at a location, with a lane that is among `held` afterwards."""
        member = None if before is None else before.members.get(location)
        if member is not None and member.sight == seen:
            _hold(member.lane, held)
            return member
        bundle = self._open(location)
        lane = self._lane(bundle, [*held, *(() if before is None else before.lanes)], held)
        lane.try_head(bundle)
        # Without the bundle's own graph: an engine has it, and it is most of what a bundle takes.
        model = ModelRef(bundle.name, bundle.version, bundle.digest, bundle.head.name)
        return Member(seen, model, bundle.image, bundle.head, lane, bundle.stream)

    def _open(self, location: str) -> Bundle:
        """What lies at a location, fetched first where it is a URL."""
        url = bundle_url(location)
        if url is None or self._cache is None:
            return open_bundle(location)
        return open_bundle(location, at=self._cache.fetch(url))

    def _sight_of(self, location: str) -> Sight:
        """Of a bundle's location; what is wrong with the location itself is told when it is loaded."""
        try:
            url = bundle_url(location)
            if url is not None:
                return () if self._cache is None else self._cache.look(url)
            return sight(bundle_path(location))
        except BundleError:
            return ()

    def _lane(self, bundle: Bundle, open_lanes: list[Lane], held: list[Lane]) -> Lane:
        """A lane that serves this bundle: an open one where there is one, else a new one."""
        shape = (bundle.image.height_px, bundle.image.width_px, 3)
        for lane in dict.fromkeys(open_lanes):
            same = (lane.featurizer, lane.image_shape) == (bundle.head.featurizer, shape)
            if same and (not self._must_agree or lane.agrees(bundle)):
                _hold(lane, held)
                return lane
        lane = Lane(bundle.head.featurizer, self._open_backend(bundle))
        held.append(lane)
        if self._largest is not None and lane.largest < self._largest:
            msg = (
                f"--batch-size {self._largest} is too large for backend {lane.engine.backend}: expected at most "
                f"{lane.largest}"
            )
            raise SettingsError(msg)
        return lane


def sight(path: Path) -> Sight:
    """What a look at a file, or at the files of a folder, tells; empty where nothing is there."""
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        states = [(str(file.relative_to(path)), file.stat()) for file in files]
    except OSError:  # not there, or on its way in or out: what it is will be seen at the next look
        return ()
    return tuple((name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states)


def same_pixels(one: ImageSpec, other: ImageSpec) -> bool:
    """Whether two specs make the same image of the same bytes, where both make one."""
    return replace(other, max_pixels=one.max_pixels, max_bytes=one.max_bytes) == one


def _hold(lane: Lane, held: list[Lane]) -> None:
    """Need a lane, once."""
    if lane not in held:
        lane.hold()
        held.append(lane)


def _at_station(seat: Seat, rule: Rule, station: str) -> Seat:
    """A rule's seat as it serves one of its stations, the candidate's likewise."""
    if rule.has_own_point:
        return seat
    head = seat.head.at(station)
    shadow = None if seat.shadow is None else _at_station(seat.shadow, rule, station)
    if head is seat.head and shadow is seat.shadow:
        return seat
    return replace(seat, head=head, operating_point=head.operating_point, shadow=shadow)


def _seat(rule: Rule, member: Member, candidate: Member | None) -> Seat:
    """A member as it serves a rule's stations, and how the candidate would."""
    point = rule.operating_point(member.head.operating_point)
    spec = rule.image_spec(member.image)
    shadow = None
    takes_image = False
    # Another region is another scene, and other noise.
    stream = member.stream if spec.region == member.image.region else replace(member.stream, noise=None, scenes=None)
    if candidate is not None:
        shadow = _seat(rule, candidate, None)  # as it would serve here in the member's place
        takes_image = same_pixels(spec, shadow.image_spec)
    return Seat(
        spec,
        point,
        member.model,
        member.lane.engine,
        replace(member.head, operating_point=point),
        member.lane,
        shadow,
        shadow_takes_image=takes_image,
        shadow_is_beside=takes_image and candidate is not None and candidate.lane is member.lane,
        stream=stream,
    )
