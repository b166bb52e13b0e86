"""How glibc's allocator is kept from spreading over many arenas.

By default each thread may get an arena of its own, eight a core. Engines are opened and closed on new threads, and what
one arena has free serves no other: a consumer whose bundle is replaced again and again grows for a hundred replacements
before it stays. With two arenas it stays after a few, and answers as fast: most of what allocates holds the
interpreter's lock anyway.
"""

from __future__ import annotations

import ctypes

FEW = 2
KEPT_BYTES = 256 << 20
LARGEST_KEPT_BYTES = 32 << 20
"""glibc takes no more."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""


def few_arenas(most: int = FEW) -> bool:
    """Have this process make no further arenas beyond so many. To be called before it starts its threads.

    Returns:
        Whether the C library took it; one that is not glibc has nothing to be told.
    """
    return _told({_M_ARENA_MAX: most})


def keep_freed() -> bool:
    """Have this process keep what it frees, up to `KEPT_BYTES`, for what it allocates next.

    Otherwise each array above 128 KiB or so is taken from the system and given back, and the system clears its pages
    each time: a tenth of the processor time of a network's run on small images.

    Returns:
        Whether the C library took it.
    """
    return _told({_M_MMAP_THRESHOLD: LARGEST_KEPT_BYTES, _M_TRIM_THRESHOLD: KEPT_BYTES})


def for_training() -> bool:
    """Both: a training allocates large arrays on one pool of threads after another.

    Returns:
        Whether the C library took it.
    """
    return few_arenas() and keep_freed()


def _told(options: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, or no such library
        return False
    return all(bool(mallopt(option, value)) for option, value in options.items())
