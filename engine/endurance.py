"""A backend over every batch size and many batches: are the answers the same, how long do they take, does it grow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.backend import Features
from engine.golden import golden_pictures, nearness

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.backend import Backend

NOT_TO_THE_LAST_BIT = frozenset({"tensorrt"})
"""Backends that may take other kernels for large batches than for small ones; all others promise the last bit."""

LEAK_MIB = 8.0
"""Growth over one run that is a leak. An allocator's own coming and going stayed below 1."""

_TIMED = 3
"""Batches that each size is timed over at least."""
_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class SizeResult:
    """One batch size.

    Attributes:
        size: images in the batch.
        same: whether every image's numbers were those it has alone.
        warm_up_ms: the first batch of this size.
        images_per_s: of the batches after it, one at a time.
        p50_ms, p99_ms: of their times, begin to end.
    """

    size: int
    same: bool
    warm_up_ms: float
    images_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """Memory over many batches.

    Attributes:
        batches: how many were run.
        size: images in each.
        growth_mib: of the process's resident memory over all of them, by a line through it once it was warm.
        device_growth_mib: of the device's, where the backend tells it.
    """

    batches: int
    size: int
    growth_mib: float
    device_growth_mib: float | None

    @property
    def leaks(self) -> bool:
        """Whether it grew by more than an allocator's whims."""
        return self.growth_mib > LEAK_MIB or (self.device_growth_mib or 0.0) > LEAK_MIB


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_sizes(
    backend: Backend,
    heads: tuple[np.ndarray, np.ndarray],
    *,
    seconds: float,
    clock: Callable[[], float],
    tick: Callable[[int, int], None],
) -> list[SizeResult]:
    """Run every batch size from the smallest to the largest, each over other pictures.

    Args:
        backend: to be measured; warm or not.
        heads: weights (c, k) and biases (k,).
        seconds: to spend on all sizes together; more where three batches of each take longer.
        clock: monotonic seconds.
        tick: told (sizes done, of how many).
    """
    profile = backend.profile
    _, height, width, _ = backend.inputs[0].shape
    pictures = golden_pictures(profile.largest, height or 1, width or 1)
    alone = [backend.infer(pictures[i : i + 1], *heads) for i in range(len(pictures))]
    expected = Features(np.concatenate([a.evidence for a in alone]), np.concatenate([a.pooled for a in alone]))
    sizes = range(profile.smallest, profile.largest + 1)
    results = []
    for done, size in enumerate(sizes):
        tick(done, len(sizes))
        rows = np.arange(size, 2 * size) % len(pictures)
        begin_s = clock()
        features = backend.infer(pictures[rows], *heads)
        warm_up_s = clock() - begin_s
        same = _same(backend, features, Features(expected.evidence[rows], expected.pooled[rows]), expected)
        times_s = _times(backend, pictures[rows], heads, seconds / len(sizes), clock)
        results.append(
            SizeResult(
                size,
                same,
                warm_up_s * 1e3,
                size * len(times_s) / max(sum(times_s), 1e-9),
                *(float(value) * 1e3 for value in np.percentile(times_s, (50, 99))),
            )
        )
    tick(len(sizes), len(sizes))
    return results


def run_long(
    backend: Backend,
    heads: tuple[np.ndarray, np.ndarray],
    *,
    batches: int,
    memory: Callable[[], int],
    tick: Callable[[int, int], None],
) -> MemoryResult:
    """Run so many batches of the best size, two at a time, and look at the memory as they go.

    Args:
        backend: to be measured.
        heads: weights (c, k) and biases (k,).
        batches: how many.
        memory: bytes that the process holds now.
        tick: told (batches done, of how many).
    """
    _, height, width, _ = backend.inputs[0].shape
    size = backend.profile.best
    pictures = golden_pictures(size, height or 1, width or 1)
    device: Callable[[], int] | None = getattr(backend, "device_memory_bytes", None)
    every = max(1, batches // _SAMPLES)
    held: list[tuple[int, int]] = []
    ticket = backend.submit(pictures, *heads)
    for done in range(batches):
        following = backend.submit(pictures, *heads) if done + 1 < batches else None
        backend.collect(ticket)
        if following is not None:
            ticket = following
        if done % every == 0:
            held.append((memory(), device() if device is not None else 0))
            tick(done, batches)
    tick(batches, batches)
    process, on_device = zip(*held, strict=True)
    grown = [_growth_mib(values, every, batches) for values in (process, on_device)]
    return MemoryResult(batches, size, grown[0], grown[1] if device is not None else None)


def _growth_mib(samples: tuple[int, ...], every: int, batches: int) -> float:
    """By a straight line through all but the first fifth, where caches still fill."""
    warm = samples[len(samples) // 5 :]
    if len(warm) < 2:  # noqa: PLR2004 - a line
        return 0.0
    slope, _ = np.polyfit(np.arange(len(warm)) * every, np.array(warm, np.float64), 1)
    return float(slope) * batches / 2**20


def _same(backend: Backend, got: Features, expected: Features, everything: Features) -> bool:
    if backend.name in NOT_TO_THE_LAST_BIT:
        return nearness(got, expected, everything.evidence.std(axis=0), backend.precision).agrees
    return np.array_equal(got.evidence, expected.evidence) and np.array_equal(got.pooled, expected.pooled)


def _times(
    backend: Backend,
    images: np.ndarray,
    heads: tuple[np.ndarray, np.ndarray],
    seconds: float,
    clock: Callable[[], float],
) -> list[float]:
    times_s: list[float] = []
    while len(times_s) < _TIMED or sum(times_s) < seconds:
        begin_s = clock()
        backend.infer(images, *heads)
        times_s.append(clock() - begin_s)
    return times_s
