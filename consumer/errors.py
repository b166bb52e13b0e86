"""What the consumer raises on purpose, split by what the caller does next."""

from __future__ import annotations

from engine.errors import InputError, WorkError


class SettingsError(InputError):
    """A setting is wrong: fix it and start again."""


class BrokerError(WorkError):
    """The broker is not there, or refused: nothing was committed that was not answered."""


class GivenUpError(WorkError):
    """A publication was given up; what became of it the committed positions tell. Rewind the source and go on."""


class TopicError(WorkError):
    """A topic is not there or does not fit: create or alter it and start again."""


class ChildError(WorkError):
    """A process that this one started has ended badly, or not at all."""
