"""What a trained bundle tells of itself, and what the command prints of it."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from engine.bundle import Bundle
    from engine.featurizer import FeaturizerSpec
    from trainer.dataset import Dataset
    from trainer.feature_store import FeatureCache
    from trainer.labels import Labelling, Sample

MOST_VALUES = 64


def of_images(data: Dataset, labelling: Labelling, used: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    """Which images there were, as plain values."""
    return {
        "images": {"used": len(used), "held_out": len(held), "defects": int(data.defect.sum())},
        "classes": {"pass": labelling.pass_class, "fail": labelling.fail_class, "how": labelling.how},
        "skipped": [list(entry) for entry in data.skipped],
        "duplicates": data.copies.to_json(),
    }


def of_cache(cache: FeatureCache) -> dict[str, Any]:
    """How many features were found and how many were computed."""
    return {"features": {"found": cache.found, "computed": cache.computed}}


def of_network(featurizer: FeaturizerSpec) -> dict[str, Any]:
    """What the numbers depend on: packages and pretrained weights."""
    return {
        "versions": package_versions(),
        "weights": {"package": featurizer.network.package, "sha256": featurizer.network.sha256},
    }


def summary(out: Path, bundle: Bundle, *, has_report: bool) -> dict[str, Any]:
    """What the command prints of a trained bundle."""
    point = bundle.head.operating_point
    told = (
        "mode",
        "classes",
        "images",
        "chosen",
        "cross_validated",
        "held_out",
        "learning_curve",
        "near_duplicates",
        "operating_point",
        "false_rejects",
        "camera_checks",
        "refined",
        "skipped",
        "notes",
        "features",
        "duplicates",
        "steps_s",
        "seconds",
    )
    return {
        "bundle": str(out),
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "report": "report/index.html" if has_report else None,
        "input_px": [bundle.image.width_px, bundle.image.height_px],
        "tile_px": None if bundle.image.tile_px is None else list(bundle.image.tile_px),
        "defect_rate": bundle.defect_rate,
        "defect_rate_given": bundle.about.get("defect_rate_given", False),
        "threshold": point.threshold,
        "review_band": list(point.review_band),
        **{key: bundle.about[key] for key in told if key in bundle.about},
    }


def package_versions() -> dict[str, str]:
    """Of what a bundle's numbers depend on."""
    packages = ("framegate", "numpy", "scikit-learn", "scipy", "onnx", "onnxruntime", "opencv-python-headless")
    return {name: importlib.metadata.version(name) for name in packages}


def breakdowns(samples: Sequence[Sample], labelling: Labelling) -> dict[str, list[str]]:
    """By group where groups were given, and by every further column of the groups file that is short enough."""
    columns: dict[str, list[str]] = {}
    if any(sample.group for sample in labelling.samples):
        columns["group"] = [sample.group or "" for sample in samples]
    for name in sorted({key for sample in samples for key in sample.extra}):
        values = [sample.extra.get(name, "") for sample in samples]
        if len(set(values)) <= MOST_VALUES:
            columns[name] = values
    return columns
