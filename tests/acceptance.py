"""What acceptance reports are made of, drawn in a moment, for tests that need no training run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, logit

from engine.bundle import sealed
from engine.heads import decide
from tests.bundles import small_bundle
from trainer.report.data import Acceptance, Judged, Picture
from trainer.report.pictures import encode_jpeg

if TYPE_CHECKING:
    from engine.prediction import OperatingPoint

ABOUT: dict[str, Any] = {
    "created_at": "2026-01-02T03:04:05+00:00",
    "source": "parts.zip",
    "seed": 3,
    "costs": {"escape": 20.0, "false_reject": 1.0, "review": 0.5},
    "trained_defect_rate": 0.4,
    "defect_rate_given": False,
    "classes": {"pass": "good", "fail": "scratched", "how": "folders"},
    "chosen": {
        "images": 120,
        "candidates": [
            {
                "input_px": [64, 64],
                "taps": [2, 4, 7],
                "embedding": False,
                "parts": "evidence",
                "million_macs": 12.5,
                "auroc": 0.97,
                "below_best": 0.0,
                "standard_error": 0.0,
                "chosen": True,
            }
        ],
        "not_tried": [{"input_px": [128, 128], "why": "too much"}],
    },
    "camera_checks": {"frozen": "on", "shifted": "off: the images have no scenes in common"},
    "skipped": [["good/broken.jpg", "not an image"]],
    "notes": ["1 link not followed"],
    "duplicates": {"copies": [["good/1.jpg", "good/2.jpg"]], "contradictions": []},
    "learning_curve": {
        "points": [
            {"images": 40, "auroc": 0.8, "low": 0.7, "high": 0.9},
            {"images": 80, "auroc": 0.9, "low": 0.85, "high": 0.95},
        ],
        "says": "The curve still rises.",
    },
    "versions": {"framegate": "0.1.0", "numpy": "2.0"},
    "weights": {"package": "a-package", "sha256": "0" * 64},
    "steps_s": {"featurize": 1.5, "fit": 0.25},
    "seconds": 2.0,
}


def judged(
    count: int = 200, *, groups: int = 10, apart: float = 4.0, share: float = 0.4, seed: int = 0, prefix: str = ""
) -> Judged:
    """Images whose log odds are normal about -apart/2 and +apart/2, in groups that differ a little."""
    rng = np.random.default_rng(seed)
    defect = rng.random(count) < share
    of_group = rng.integers(0, groups, count)
    odds = rng.normal(apart * (defect - 0.5), 1.0) + rng.normal(0, 0.3, groups)[of_group]
    probability = np.round(expit(odds * max(apart, 0.5) + logit(share)), 6)
    names = tuple(f"{prefix}{'fail' if bad else 'good'}/{index}.jpg" for index, bad in enumerate(defect))
    return Judged(
        names,
        defect,
        of_group,
        probability,
        decisions(probability, small_bundle().head.operating_point),
        {"group": tuple(f"{prefix}lot-{number}" for number in of_group)},
    )


def only(images: Judged, *, defects: bool) -> Judged:
    rows = np.flatnonzero(images.defect == defects)
    return Judged(
        tuple(images.names[row] for row in rows),
        images.defect[rows],
        images.groups[rows],
        images.probability[rows],
        images.decision[rows],
    )


def decisions(probability: np.ndarray, point: OperatingPoint) -> np.ndarray:
    return np.array([decide(float(value), point, None).decision for value in probability])


def picture(name: str, why: str = "near", *, label: str = "good", group: str = "lot-1", seed: int = 0) -> Picture:
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    is_plain = why == "label"
    return Picture(
        name, label, label != "good", group, 0.25, "review", ("band",), why, encode_jpeg(noise),
        None if is_plain else encode_jpeg(255 - noise), (32, 24),
    )  # fmt: skip


def acceptance(*, about: dict[str, Any] | None = None, prefix: str = "", **changed: Any) -> Acceptance:
    """A whole one; `prefix` stands before every name that a stranger may have chosen."""
    own = {**ABOUT, **(about or {})}
    bundle = replace(sealed(small_bundle()), about=own)
    whole = Acceptance(
        bundle=bundle,
        held=judged(60, groups=8, seed=1, prefix=prefix),
        everything=judged(240, groups=24, seed=2, prefix=prefix),
        pictures=(
            picture(f"{prefix}fail/7.jpg", "escape", label=f"{prefix}scratched", group=f"{prefix}lot-3"),
            picture(f"{prefix}good/8.jpg", "near", seed=1),
        ),
        doubtful=(picture(f"{prefix}good/9.jpg", "label", seed=2),),
        used_groups=(f"{prefix}lot-1", f"{prefix}lot-2"),
        held_groups=(f"{prefix}lot-3",),
        used_images=180,
        used_defects=70,
        settings={"size_px": "(64, 64)"},
    )
    return replace(whole, **changed)
