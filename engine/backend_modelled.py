"""A backend that computes nothing worth knowing and takes the time that it is told to: for simulations and tests.

It keeps the contract to the letter, so that batching, shared engines and pipelines can be driven with the figures of a
GPU that is not here. Its numbers depend on the pictures in a plain way; they judge nothing, and no command serves them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.backend import Features, Slots, Ticket, check_batch
from engine.errors import InputError
from engine.specs import LARGEST_BATCH, BatchProfile, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

_GRID_STRIDE_PX = 8


@dataclass(frozen=True, slots=True)
class BatchCost:
    """What a batch of n images takes: `fixed_s + n * per_image_s`, in seconds."""

    fixed_s: float
    per_image_s: float

    def __post_init__(self) -> None:
        """Refuse times that cannot be."""
        if not (self.fixed_s >= 0 and self.per_image_s >= 0):
            msg = f"batch cost {self.fixed_s} s + {self.per_image_s} s an image is no time: expected 0 or more"
            raise InputError(msg)

    def seconds(self, images: int) -> float:
        """Of one batch."""
        return self.fixed_s + images * self.per_image_s


class ModelledBackend:
    """A device that computes one batch after the other, each in its modelled time. Meets `engine.backend.Backend`."""

    name = "modelled"
    precision = "fp32"

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        pooled_size: int,
        cost: BatchCost,
        *,
        profile: BatchProfile | None = None,
        blank: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Model a device.

        Args:
            inputs: as `engine.backbone.inputs` gives them.
            pooled_size: length of the pooled vector.
            cost: what a batch takes.
            profile: the batches to accept.
            blank: answer with zeros, which costs this machine next to nothing, as with a device of its own.
            clock: monotonic seconds; with `sleep`, what a simulation puts its virtual clock in for.
            sleep: waits for so many seconds.
        """
        self.device = f"modelled: {cost.fixed_s * 1e3:g} ms + {cost.per_image_s * 1e3:g} ms an image"
        self.inputs = inputs
        self.profile = profile or BatchProfile(1, 32, LARGEST_BATCH)
        self.cost = cost
        self._pooled_size, self._blank = pooled_size, blank
        self._clock, self._sleep = clock, sleep
        self._slots = Slots()
        self._out: dict[int, tuple[float, Features]] = {}
        self._free_at_s = float("-inf")

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """See `Backend.infer`."""
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        """See `Backend.submit`."""
        check_batch(self.inputs, images, weights, biases, largest=self.profile.largest)
        ticket, slot = self._slots.take()
        self._free_at_s = max(self._clock(), self._free_at_s) + self.cost.seconds(len(images))
        self._out[slot] = self._free_at_s, self._features(images, weights, biases, locations=locations)
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        """See `Backend.collect`."""
        ready_at_s, features = self._out.pop(self._slots.slot(ticket))
        self._slots.give_back(ticket)
        wait_s = ready_at_s - self._clock()
        if wait_s > 0:
            self._sleep(wait_s)
        return features

    def close(self) -> None:
        """See `Backend.close`."""
        self._out.clear()

    def _features(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool) -> Features:
        """Mean colours of the grid's cells stand for the taps: each head sees them through its first three weights."""
        n, height, width, colours = images.shape
        rows, columns = height // _GRID_STRIDE_PX, width // _GRID_STRIDE_PX
        if self._blank:
            zeros = np.zeros((n, rows, columns, len(biases)), np.float32) if locations else None
            return Features(np.zeros((n, len(biases)), np.float32), np.zeros((n, self._pooled_size), np.float32), zeros)
        cells = images.reshape(n, rows, _GRID_STRIDE_PX, columns, _GRID_STRIDE_PX, colours)
        means = cells.mean((2, 4), dtype=np.float32) / np.float32(127.5) - 1
        # One head at a time: no head's sums depend on another's.
        maps = [
            means[..., 0] * w[0] + means[..., 1] * w[1] + means[..., 2] * w[2] + b
            for w, b in zip(weights.T, biases, strict=True)
        ]
        evidence = np.stack([np.log(np.exp(scores).mean((1, 2))) for scores in maps], axis=-1)
        pooled = np.zeros((n, self._pooled_size), np.float32)
        summary = np.concatenate([means.mean((1, 2)), means.max((1, 2)), means.std((1, 2))], axis=1)
        pooled[:, : summary.shape[1]] = summary
        return Features(evidence, pooled, np.stack(maps, axis=-1) if locations else None)
