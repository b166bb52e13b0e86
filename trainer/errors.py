"""What the trainer raises on purpose, split by what the caller does next."""

from __future__ import annotations

from engine.errors import InputError, WorkError


class SourceError(InputError):
    """A source of images that is not there, not readable, or not safe to read: nothing of it is used."""


class MemberError(SourceError):
    """One file of a sound source cannot be read. The caller may set it aside and go on with the rest."""


class LabelError(InputError):
    """The files do not say which two classes there are: the message says what to add or rename."""


class SplitError(InputError):
    """The groups do not allow a split in which both sides know both classes."""


class FetchError(WorkError):
    """Images cannot be downloaded now, or what arrived is not what was promised. Starting again may help."""


class UnprovedError(WorkError):
    """The held-out images cannot prove the escape rate that was asked for: the message says how many more could."""


class ChanceError(WorkError):
    """The model ranks held-out images no better than chance, and there were enough to tell: nothing worth writing."""


class SparkError(WorkError):
    """The cluster cannot be reached, its executors are not like this machine, or a job on it failed."""
