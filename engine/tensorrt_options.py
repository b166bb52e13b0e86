"""What a user may set about TensorRT, in one frozen place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from engine.errors import InputError
from engine.specs import HEAD_GROUP, BatchProfile

if TYPE_CHECKING:
    from pathlib import Path

_PRECISIONS = ("fp16", "fp32")
_LEVELS = range(6)
_LATENCY, _THROUGHPUT = BatchProfile(1, 1, 4), BatchProfile(1, 32, 64)


@dataclass(frozen=True, slots=True)
class TensorRTOptions:
    """Settings of the TensorRT backend; everything that a plan depends on is part of its cache key.

    Attributes:
        precision: `fp16`, or `fp32` for parity. A quantized graph runs in int8 whatever stands here.
        latency: batches that are answered as fast as can be.
        throughput: the larger ones. Its largest is the largest batch that the backend takes.
        most_heads: heads in one batch, at most; a multiple of 4. A head more or less up to here needs no new plan.
        exact: ask TensorRT to compute every image and every head by the same operations, whatever lies beside it.
            TensorRT knows this only for plans with one profile, so there are two plans then; without it one plan has
            both profiles, and last bits may depend on the neighbours.
        tf32: let float32 products be rounded to ten bits of mantissa. Off: it is not parity.
        optimization_level: 0 (built fastest) to 5 (runs fastest); TensorRT's own default is 3.
        workspace_bytes: scratch memory that a plan may use; None: all that the GPU has.
        memory_limit_bytes: device memory for plans, scratch and buffers together; None: all that is free.
        gpu: which GPU, counted from 0 as CUDA does.
        plans: folder of the plan cache; None: below the user's home. The commands pass `plan_cache.default_folder`.
        warm: run every size of batch once before saying ready; the first use of a size can take seconds.
    """

    precision: str = "fp16"
    latency: BatchProfile = _LATENCY
    throughput: BatchProfile = _THROUGHPUT
    most_heads: int = 64
    exact: bool = True
    tf32: bool = False
    optimization_level: int = 3
    workspace_bytes: int | None = None
    memory_limit_bytes: int | None = None
    gpu: int = 0
    plans: Path | None = None
    warm: bool = True

    def __post_init__(self) -> None:
        """Refuse what TensorRT would only refuse after minutes, or take and misunderstand."""
        limits = (self.workspace_bytes, self.memory_limit_bytes)
        wrong = {
            f"precision {self.precision!r}: expected one of {', '.join(_PRECISIONS)}": self.precision
            not in _PRECISIONS,
            f"most_heads {self.most_heads}: expected a positive multiple of {HEAD_GROUP}": self.most_heads < HEAD_GROUP
            or self.most_heads % HEAD_GROUP != 0,
            f"optimization_level {self.optimization_level}: expected {_LEVELS[0]} to {_LEVELS[-1]}": (
                self.optimization_level not in _LEVELS
            ),
            f"memory limits {limits} bytes: expected positive numbers": any(n is not None and n < 1 for n in limits),
            f"gpu {self.gpu}: expected 0 or more": self.gpu < 0,
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                msg = f"TensorRT cannot be set to {message}"
                raise InputError(msg)

    @property
    def largest(self) -> int:
        """The largest batch."""
        return self.throughput.largest

    @property
    def profiles(self) -> tuple[BatchProfile, ...]:
        """The profiles, smaller batches first; one where the largest batch fits the first already."""
        return (self.latency, self.throughput) if self.largest > self.latency.largest else (self.latency,)

    @property
    def plan_profiles(self) -> tuple[tuple[BatchProfile, ...], ...]:
        """The profiles of each plan."""
        return tuple((profile,) for profile in self.profiles) if self.exact else (self.profiles,)

    def limited(self, largest: int) -> Self:
        """The same for batches of at most so many images."""
        return replace(self, latency=_limited(self.latency, largest), throughput=_limited(self.throughput, largest))

    def built_in(self) -> dict[str, Any]:
        """What a plan's content depends on besides its graph, its profiles, and the machine: for its cache key."""
        return {
            "most_heads": self.most_heads,
            "exact": self.exact,
            "tf32": self.tf32,
            "optimization_level": self.optimization_level,
            "workspace_bytes": self.workspace_bytes,
        }


def _limited(profile: BatchProfile, largest: int) -> BatchProfile:
    return BatchProfile(min(profile.smallest, largest), min(profile.best, largest), min(profile.largest, largest))
