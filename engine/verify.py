"""Is a backend's answer the reference's answer, whatever the batch and however long it runs? And how fast is it?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.agreement import compare, infer_all
from engine.choice import open_for
from engine.endurance import resident_bytes, run_long, run_sizes
from engine.errors import BundleError
from engine.golden import compare_golden
from engine.heads import stack

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.agreement import Agreement
    from engine.endurance import MemoryResult, SizeResult
    from engine.golden import Nearness
    from engine.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Effort:
    """How much `verify` does.

    Attributes:
        seconds: to time the batch sizes for, all together.
        batches: to look at the memory over.
    """

    seconds: float = 5.0
    batches: int = 1000


def verify(
    scorer: Scorer,
    effort: Effort,
    clock: Callable[[], float],
    *,
    memory: Callable[[], int] = resident_bytes,
    tick: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> dict[str, Any]:
    """Everything that `framegate verify` tells, as plain values; a number that is none is None.

    `agrees` says whether it is the reference's answer, on the bundle's images, on golden pictures and in every batch;
    `faults` names what is wrong in words, a leak too, and is empty where nothing is.

    Args:
        scorer: a bundle on the backend in question.
        effort: how much to do.
        clock: monotonic seconds.
        memory: bytes that the process holds now.
        tick: told (what is being done, how much of it, of how much).

    Raises:
        BundleError: the bundle brings no reference.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # what is no number is told, not warned of
        result = verify_scorer(scorer, clock)
    backend = scorer.backend
    heads = _two_heads(scorer)
    tick("golden pictures", 0, 1)
    reference = open_for(scorer.bundle, "onnxruntime")
    try:
        golden = compare_golden(backend, reference, *heads)
    finally:
        reference.close()
    tick("golden pictures", 1, 1)
    sizes = run_sizes(
        backend, heads, seconds=effort.seconds, clock=clock, tick=lambda done, total: tick("batch sizes", done, total)
    )
    held = run_long(
        backend, heads, batches=effort.batches, memory=memory, tick=lambda done, total: tick("memory", done, total)
    )
    wrong = _wrong_answers(result["agrees"], result["reference"]["told"], golden, sizes)
    result |= {
        "agrees": not wrong,
        "faults": [*wrong, *_leaks(held)],
        "golden": {**asdict(golden), "agrees": golden.agrees},
        "batches": [asdict(size) for size in sizes],
        "memory": {**asdict(held), "leaks": held.leaks},
    }
    finite: dict[str, Any] = _finite(result)
    return finite


def verify_scorer(scorer: Scorer, clock: Callable[[], float]) -> dict[str, Any]:
    """The part on the bundle's own reference images: `agrees` is true where the numbers are near enough.

    Raises:
        BundleError: the bundle brings no reference.
    """
    bundle, backend, reference = scorer.bundle, scorer.backend, scorer.bundle.reference
    if reference is None:
        msg = f"bundle {bundle.name!r} brings no reference images: expected a bundle with reference/; train it again"
        raise BundleError(msg)
    scorer.features(reference.images[:1])  # the first call pays for loading, not the rate
    start_s = clock()
    features = infer_all(backend, reference.images, *stack([bundle.head]))
    seconds = clock() - start_s
    found: Agreement = compare(features, reference, bundle.head, backend.precision)
    return {
        "agrees": found.agrees,
        "backend": backend.name,
        "device": backend.device,
        "precision": backend.precision,
        "images": found.images,
        "decisions_changed": found.decisions_changed,
        "pooled_cosine_min": found.pooled_cosine_min,
        "probability_difference_max": found.probability_difference_max,
        "evidence_difference_max": found.evidence_difference_max,
        "images_per_s": found.images / seconds,
        "reference": {**asdict(found), "agrees": found.agrees, "told": str(found)},
    }


def _two_heads(scorer: Scorer) -> tuple[np.ndarray, np.ndarray]:
    """The bundle's head, and beside it one of random weights in the same units."""
    weights, biases = stack([scorer.bundle.head])
    random = np.random.default_rng(1).normal(0, float(weights.std()) or 1.0, weights.shape).astype(np.float32)
    return np.concatenate([weights, random], axis=1), np.concatenate([biases, np.zeros(1, np.float32)])


def _wrong_answers(reference_agrees: bool, told: str, golden: Nearness, sizes: list[SizeResult]) -> list[str]:
    faults = []
    if not reference_agrees:
        faults.append(f"not the reference's answer on the bundle's reference images: {told}")
    if not golden.agrees:
        faults.append(
            f"not the reference's answer on golden pictures: smallest cosine {golden.pooled_cosine_min:.6f}, largest "
            f"difference of the evidence {golden.evidence_difference_share:.4f} of its deviation"
        )
    other = [str(size.size) for size in sizes if not size.same]
    if other:
        faults.append(f"an image's numbers depend on its batch, in batches of {', '.join(other)}")
    return faults


def _leaks(held: MemoryResult) -> list[str]:
    if not held.leaks:
        return []
    device = "" if held.device_growth_mib is None else f", the device's by {held.device_growth_mib:.1f} MiB"
    return [f"memory grew by {held.growth_mib:.1f} MiB{device} over {held.batches} batches of {held.size}"]


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
