"""The root of every error Framegate raises on purpose, split by what the caller does next.

A message says what was wrong, what was got, what was expected, and the cure, in that order, in one line where it
fits: a line engineer reads it at night.
"""

from __future__ import annotations


class FramegateError(Exception):
    """Root of all errors raised on purpose. `exit_code` is what the command ends with when it reaches the top."""

    exit_code = 1


class InputError(FramegateError):
    """What the user gave is wrong: fix the input and start again. Retrying cannot help."""

    exit_code = 2


class WorkError(FramegateError):
    """The input was sound and the work failed: a broker that is gone, a disk that is full."""


class BundleError(InputError):
    """A bundle that is not there, not whole, or from a newer Framegate."""


class RemoteError(WorkError):
    """What lies at a URL cannot be fetched now: its server is away, silent, or does not let us."""


class GraphError(InputError):
    """A network that is corrupt, of another kind than Framegate builds, or asks for parts that do not exist."""


class HeadError(InputError):
    """A head of another featurizer, or of a shape that the graph does not take."""


class BatchError(InputError):
    """A batch of another shape or dtype than the graph takes, too large for the backend, or one too many."""


class DeviceError(WorkError):
    """The device cannot be used or failed: no GPU, no driver, a driver too old, out of memory."""


class EngineGoneError(WorkError):
    """The engine's process is away for too long: no frame's fault. What was not answered is to be judged again."""


class PlanError(WorkError):
    """A plan that cannot be built, or does not load even after it was rebuilt."""


class ParityError(WorkError):
    """A backend whose answer is not the reference's, where nothing else was asked for."""


class FrameError(FramegateError):
    """One image cannot be judged. Never ends a run: it becomes a verdict `none` with `cause`.

    Attributes:
        cause: `undecodable` (empty, not an image, or broken) or `oversize` (over a pixel or byte limit).
    """

    def __init__(self, cause: str, message: str) -> None:
        """Keep the cause beside the message."""
        super().__init__(message)
        self.cause = cause
