"""What is sent in the fault runs, and what has to be said of it: scored beforehand, each frame alone.

Most frames are good. Some are poison: odd and broken images, nothing at all. Some bear a mark at which the worker's
engine raises, whatever batch they are in: each of these has to come out as an engine error, and nothing else with it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from engine.scorer import open_scorer
from tests.bundles import IMAGE, pictures
from tests.faults.checker import Expected, digest_of

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from engine.scorer import Scorer

ROOT = Path(__file__).resolve().parents[2]

MARK_PX = 8
MARK = (255, 0, 255)

GOOD = 24
MARKED_SHARE = 0.02
POISON_SHARE = 0.05
LARGEST_POISON_BYTES = 64 * 1024
EDGE = 0.02
"""No good frame's probability lies nearer to one at which the decision changes."""

CAUSES = {"reject": "undecodable", "reject_by_limit": "oversize"}


def is_marked(image: np.ndarray) -> bool:
    """Whether the engine raises at this uint8 (h, w, 3) image."""
    return bool((image[:MARK_PX, :MARK_PX] == MARK).all())


@dataclass(frozen=True, slots=True)
class Assortment:
    """Payloads by kind, and what has to be said of each, by the digest of its bytes."""

    good: tuple[bytes, ...]
    marked: tuple[bytes, ...]
    poison: tuple[bytes | None, ...]
    expected: dict[str, Expected]

    def draw(self, random: random.Random) -> bytes | None:
        """One frame's bytes."""
        lot = random.random()
        if lot < POISON_SHARE:
            return random.choice(self.poison)
        return random.choice(self.marked if lot < POISON_SHARE + MARKED_SHARE else self.good)


def shared_data() -> Path | None:
    """Folder with the collection of bad images: FRAMEGATE_TEST_DATA, else `shared` beside the repository."""
    folder = Path(os.environ.get("FRAMEGATE_TEST_DATA") or ROOT.parent / "shared")
    return folder if (folder / "badimages" / "index.json").is_file() else None


def assortment(bundle: Path, collection: Path | None) -> Assortment:
    """All that may be sent.

    Args:
        bundle: judges.
        collection: see `shared_data`; None: only the bad images that are made here.
    """
    expected: dict[str, Expected] = {}
    with open_scorer(bundle, "onnxruntime") as scorer:
        good = [jpeg(picture) for picture in pictures(2 * GOOD, seed=11)]
        chosen = [payload for payload in good if _is_clear(scorer, payload)][:GOOD]
        marked = [_marked(number) for number in range(4)]
        poison: list[bytes | None] = [None, b"", b"not an image", good[0][:200], png(np.zeros((64, 64, 3), np.uint8))]
        for payload in chosen:
            expected[digest_of(payload)] = _scored(scorer, payload)
        expected[digest_of(poison[-1])] = _scored(scorer, poison[-1])
        for broken in poison[:-1]:
            expected[digest_of(broken)] = Expected("none", "undecodable")
        for payload in marked:
            if not is_marked(scorer.decode(payload)):
                msg = "a mark was lost on the way through the decoder"
                raise ValueError(msg)
            expected[digest_of(payload)] = Expected("none", "engine_error")
        for payload, expectation in _collected(collection):
            if expectation in CAUSES:
                expected[digest_of(payload)] = Expected("none", CAUSES[expectation])
            elif _is_clear(scorer, payload):
                expected[digest_of(payload)] = _scored(scorer, payload)
            else:
                continue
            poison.append(payload)
    return Assortment(tuple(chosen), tuple(marked), tuple(poison), expected)


def jpeg(image: np.ndarray) -> bytes:
    """Encode uint8 (h, w, 3)."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def png(image: np.ndarray) -> bytes:
    """Encode uint8 (h, w, 3) without loss."""
    return cv2.imencode(".png", image)[1].tobytes()


def _marked(number: int) -> bytes:
    """A picture of the network's own size, so that no pixel of the mark is changed."""
    image = pictures(1, seed=100 + number)[0]
    image[:MARK_PX, :MARK_PX] = MARK
    if image.shape[:2] != (IMAGE.height_px, IMAGE.width_px):
        msg = f"a marked picture has to have the network's size {IMAGE}"
        raise ValueError(msg)
    return png(image)  # the mark reads the same in either order of the colours


def _is_clear(scorer: Scorer, payload: bytes) -> bool:
    """Whether a rounding error could not change what is decided."""
    probability = _scored(scorer, payload).probability
    point = scorer.operating_point
    edges = (point.threshold, *point.review_band)
    return probability is not None and all(abs(probability - edge) > EDGE for edge in edges)


def _scored(scorer: Scorer, payload: bytes | None) -> Expected:
    """What the engine says of one frame alone."""
    prediction = scorer.score(scorer.decode(payload)[None]).predictions[0]
    return Expected(prediction.decision, None, prediction.defect_probability)


def _collected(collection: Path | None) -> Iterator[tuple[bytes, str]]:
    """The collection's files that end one way whatever decodes them, and that are small."""
    if collection is None:
        return
    folder = collection / "badimages"
    for entry in json.loads((folder / "index.json").read_text(encoding="utf-8"))["files"]:
        if entry["expect"] != "either" and 0 < entry["bytes"] <= LARGEST_POISON_BYTES:
            yield (folder / entry["file"]).read_bytes(), entry["expect"]
