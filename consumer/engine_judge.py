"""The judge of production: routes from a lineup, that can be replaced while frames are under way."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Self, cast

from consumer.lanes import CLOSE_S
from consumer.shadow import Shown
from engine.prediction import ScoredBatch
from engine.preprocess import preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from consumer.lanes import Lane
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
        shadow: what the candidate is shown to; None: the lineup's candidate, if any, is not asked.
    """

    def __init__(self, lineup: Lineup) -> None:
        """Take the lineup over: it is closed here."""
        self._now = lineup
        self._swapping = threading.Lock()
        self.shadow: Shadow | None = None

    @property
    def lineup(self) -> Lineup:
        """Who judges the next frames."""
        return self._now

    def swap(self, lineup: Lineup) -> None:
        """From the next frame on, this lineup judges. Frames that have a route keep it, and it its engine.

        From any thread. Takes the lineup over; the one before is closed.
        """
        with self._swapping:
            before, self._now = self._now, lineup
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

    def warm(self, largest: int) -> None:
        """See `Judge`."""
        self._now.warm(largest)

    def decode(self, payload: bytes, route: Route) -> NDArray[np.uint8]:
        """See `Judge`."""
        return preprocess(payload, route.image_spec, cast("Seat", route).lane.frame())

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """See `Judge`. Frames of one engine go through it together, each under the heads of all of them."""
        shadow = self.shadow
        if shadow is not None:
            shadow.engine_works()
        try:
            scored, shown = _score(frames, shadowed=shadow is not None)
        finally:
            if shadow is not None:
                shadow.engine_rests()
        if shadow is not None:
            shadow.show(shown)
        return scored

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


def _score(frames: Sequence[Decoded], *, shadowed: bool) -> tuple[ScoredBatch, list[Shown]]:
    """Predictions in the order of the frames, and what the candidate is to be shown."""
    predictions: dict[int, Prediction] = {}
    shown: list[Shown] = []
    inference_ms = classify_ms = 0.0
    for lane, places in _groups(frames, shadowed=shadowed):
        began_s = time.perf_counter()
        together = [frames[place] for place in places]
        images = [frame.image for frame in together]  # (h, w, 3) uint8 each
        heads = _columns([_seat(frame) for frame in together], shadowed=shadowed)
        features = lane.infer(images, list(heads.values()))
        inferred_s = time.perf_counter()
        columns = {digest: column for column, digest in enumerate(heads)}
        for row, (place, frame) in enumerate(zip(places, together, strict=True)):
            seat = _seat(frame)
            evidence = features.evidence[row : row + 1, columns[seat.model.digest]]
            pooled = features.pooled[row : row + 1]
            (predictions[place],) = seat.head.predict(frame.image[None], evidence, pooled)
            if shadowed and seat.shadow is not None:
                shown.append(_shown(frame, seat, seat.shadow, predictions[place], features, row, columns))
        inference_ms += (inferred_s - began_s) * 1e3
        classify_ms += (time.perf_counter() - inferred_s) * 1e3
    return ScoredBatch(tuple(predictions[place] for place in range(len(frames))), inference_ms, classify_ms), shown


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
    """The frames' places by engine; more than one group of an engine only where it takes no more heads at once."""
    groups: list[tuple[Lane, list[int]]] = []
    last: dict[Lane, int] = {}
    heads: dict[Lane, set[str]] = {}
    for place, frame in enumerate(frames):
        seat = _seat(frame)
        wanted = set(_columns([seat], shadowed=shadowed))
        together = heads.get(seat.lane, set()) | wanted
        if seat.lane not in last or len(together) > seat.lane.most_heads:
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
