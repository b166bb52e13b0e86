"""Pictures of a part that is easily drawn, good and scratched, for tests that train in a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

SIDE_PX = 96


def part(seed: int, *, scratched: bool = False) -> bytes:
    """A PNG of a plate with two holes, a little elsewhere each time; with a bright scratch where it is a defect."""
    rng = np.random.default_rng(seed)
    picture = np.full((SIDE_PX, SIDE_PX, 3), (90, 110, 120), np.float32)
    shift = rng.integers(-3, 4, 2)
    for x, y in ((30, 30), (66, 60)):
        cv2.circle(picture, (int(x + shift[0]), int(y + shift[1])), 9, (40, 45, 50), -1, cv2.LINE_AA)
    if scratched:
        x, y = (int(value) for value in rng.integers(20, 76, 2))
        cv2.line(picture, (x - 9, y - 5), (x + 9, y + 6), (235, 240, 240), 2, cv2.LINE_AA)
    picture += rng.normal(0, 4, picture.shape)
    done, data = cv2.imencode(".png", np.clip(picture, 0, 255).astype(np.uint8))
    assert done
    return data.tobytes()


def parts_folder(root: Path, *, good: int, scratched: int, lots: int) -> Path:
    """`good/` and `scratched/` with a groups.csv that names each picture's lot; returns the folder."""
    rows = ["file,label,group"]
    for label, count, first in (("good", good, 0), ("scratched", scratched, 10_000)):
        for number in range(count):
            name = f"{label}/{number:04d}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(part(first + number, scratched=label == "scratched"))
            rows.append(f"{name},{label},lot{number % lots}")
    (root / "groups.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    return root
