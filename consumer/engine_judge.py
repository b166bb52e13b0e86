"""The judge of production: routes from a lineup, that can be replaced while frames are under way."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

from consumer.lanes import CLOSE_S
from consumer.ports import Begun
from consumer.shadow import Shown
from engine.prediction import ScoredBatch
from engine.preprocess import preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from consumer.lanes import Computing, Lane
    from consumer.lineup import Lineup, Seat
    from consumer.ports import Decoded, Route
    from consumer.shadow import Shadow
    from engine.backend import Features
    from engine.heads import Head
    from engine.prediction import Prediction

log = logging.getLogger(__name__)


class EngineJudge:
    """See `Judge`. A context manager: leaving it closes every engine.

    Attributes:
        largest_batch: images in the largest batch that is worth taking now; None: not warm yet.
        shadow: what the candidate is shown to; None: the lineup's candidate, if any, is not asked.
    """

    def __init__(self, lineup: Lineup) -> None:
        """Take the lineup over: it is closed here."""
        self._now = lineup
        self._swapping = threading.Lock()
        self._out = 0
        self.largest_batch: int | None = None
        self.shadow: Shadow | None = None

    @property
    def lineup(self) -> Lineup:
        """Who judges the next frames."""
        return self._now

    def swap(self, lineup: Lineup, largest_batch: int | None = None) -> None:
        """From the next frame on, this lineup judges. Frames that have a route keep it, and it its engine.

        From any thread. Takes the lineup over; the one before is closed.

        Args:
            lineup: warm.
            largest_batch: what `Lineup.warm` said; None: as before.
        """
        with self._swapping:
            before, self._now = self._now, lineup
            self.largest_batch = largest_batch or self.largest_batch
        before.close()

    def route(self, station: str) -> Route | None:
        """See `Judge`."""
        with self._swapping:  # or its engine might close between the two steps
            seat = self._now.find(station)
            if seat is not None:
                seat.lane.hold()
        return seat

    def release(self, route: Route) -> None:
        """See `Judge`."""
        cast("Seat", route).lane.let_go()

    def routes(self) -> Sequence[Route]:
        """See `Judge`."""
        return tuple(self._now.seats.values())

    def warm(self, largest: int | None, most: int) -> int:
        """See `Judge`."""
        self.largest_batch = self._now.warm(largest, most)
        return self.largest_batch

    def decode(self, payload: bytes, route: Route) -> NDArray[np.uint8]:
        """See `Judge`."""
        return preprocess(payload, route.image_spec, cast("Seat", route).lane.frame())

    @property
    def ahead(self) -> int:
        """See `Judge`."""
        return min((lane.ahead for lane in self._now.lanes), default=1)

    def begin(self, frames: Sequence[Decoded]) -> Begun:
        """See `Judge`. Frames of one engine go through it together, each under the heads of all of them."""
        shadow = self.shadow
        began_s = time.perf_counter()
        if shadow is not None:
            shadow.engine_works()
        try:
            shadowed = shadow is not None
            parts = [_part(frames, *group, shadowed=shadowed) for group in _groups(frames, shadowed=shadowed)]
        except BaseException:
            self._rest(shadow)
            raise
        self._out += 1
        return _Begun(frames, parts, shadow, began_s)

    def wait(self, begun: Begun) -> None:
        """See `Judge`."""
        mine = cast("_Begun", begun)
        if mine.waited_s is None:
            for part in mine.parts:
                part.computing.wait()
            mine.waited_s = time.perf_counter()
            self._out -= 1
            self._rest(mine.shadow)

    def finish(self, begun: Begun) -> ScoredBatch:
        """See `Judge`. `inference_ms` is from `begin` to the end of `wait`, what it waited for others included."""
        self.wait(begun)
        mine = cast("_Begun", begun)
        finish_s = time.perf_counter()
        predictions: dict[int, Prediction] = {}
        shown: list[Shown] = []
        for part in mine.parts:
            _predict(mine.frames, part, predictions, None if mine.shadow is None else shown)
        if mine.shadow is not None:
            mine.shadow.show(shown)
        return ScoredBatch(
            tuple(predictions[place] for place in range(len(mine.frames))),
            (cast("float", mine.waited_s) - mine.began_s) * 1e3,
            (time.perf_counter() - finish_s) * 1e3,
        )

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """See `Judge`."""
        return self.finish(self.begin(frames))

    def _rest(self, shadow: Shadow | None) -> None:
        """Tell the shadow, where the engine has nothing to do."""
        if shadow is not None and not self._out:
            shadow.engine_rests()

    def close(self) -> None:
        """Close every engine of the lineup, whoever may need it still."""
        self._now.close()
        for lane in self._now.lanes:
            if not lane.wait_closed(0):
                lane.close()
            if not lane.wait_closed(CLOSE_S):
                log.warning("an engine on %s did not close", lane.engine)

    def __enter__(self) -> Self:
        """The judge itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What of a batch one engine computes.

    Attributes:
        places: of its frames in the batch.
        columns: of the heads, by their bundles' digests.
    """

    places: list[int]
    columns: Mapping[str, int]
    computing: Computing


@dataclass(slots=True, eq=False)
class _Begun(Begun):
    """See `Begun`. Times of `time.perf_counter`."""

    parts: list[_Part]
    shadow: Shadow | None
    began_s: float
    waited_s: float | None = None


def _part(frames: Sequence[Decoded], lane: Lane, places: list[int], *, shadowed: bool) -> _Part:
    """Give an engine its part of a batch."""
    together = [frames[place] for place in places]
    images = [frame.image for frame in together]  # (h, w, 3) uint8 each
    heads = _columns([_seat(frame) for frame in together], shadowed=shadowed)
    columns = {digest: column for column, digest in enumerate(heads)}
    return _Part(places, columns, lane.submit(images, list(heads.values())))


def _predict(
    frames: Sequence[Decoded], part: _Part, predictions: dict[int, Prediction], shown: list[Shown] | None
) -> None:
    """Predictions by the frames' places, and what the candidate is to be shown, where there is one."""
    features = part.computing.features()
    for row, place in enumerate(part.places):
        frame, seat = frames[place], _seat(frames[place])
        evidence = features.evidence[row : row + 1, part.columns[seat.model.digest]]
        pooled = features.pooled[row : row + 1]
        (predictions[place],) = seat.head.predict(frame.image[None], evidence, pooled)
        if shown is not None and seat.shadow is not None:
            shown.append(_shown(frame, seat, seat.shadow, predictions[place], features, row, part.columns))


def _shown(
    frame: Decoded,
    seat: Seat,
    shadow: Seat,
    prediction: Prediction,
    features: Features,
    row: int,
    columns: Mapping[str, int],
) -> Shown:
    """What the candidate is to be shown of one frame; where it was beside, its numbers with it."""
    numbers = None
    if seat.shadow_is_beside:
        numbers = float(features.evidence[row, columns[shadow.model.digest]]), features.pooled[row]
    image = frame.image if seat.shadow_takes_image else None
    return Shown(frame.station, prediction.decision, shadow, image, frame.payload, numbers)


def _seat(frame: Decoded) -> Seat:
    """A frame's route, which this judge gave."""
    return cast("Seat", frame.route)


def _groups(frames: Sequence[Decoded], *, shadowed: bool) -> list[tuple[Lane, list[int]]]:
    """The frames' places by engine; more groups of an engine only where it takes no more heads, or images, at once."""
    groups: list[tuple[Lane, list[int]]] = []
    last: dict[Lane, int] = {}
    heads: dict[Lane, set[str]] = {}
    for place, frame in enumerate(frames):
        seat = _seat(frame)
        wanted = set(_columns([seat], shadowed=shadowed))
        together = heads.get(seat.lane, set()) | wanted
        full = seat.lane in last and len(groups[last[seat.lane]][1]) >= seat.lane.largest
        if seat.lane not in last or full or len(together) > seat.lane.most_heads:
            last[seat.lane] = len(groups)
            groups.append((seat.lane, []))
            together = wanted
        heads[seat.lane] = together
        groups[last[seat.lane]][1].append(place)
    return groups


def _columns(seats: Sequence[Seat], *, shadowed: bool) -> dict[str, Head]:
    """The heads these need, by their bundles' digests: one digest, one column."""
    columns: dict[str, Head] = {}
    for seat in seats:
        columns.setdefault(seat.model.digest, seat.head)
        if shadowed and seat.shadow is not None and seat.shadow_is_beside:
            columns.setdefault(seat.shadow.model.digest, seat.shadow.head)
    return columns
