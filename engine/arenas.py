"""How glibc's allocator is kept from spreading over many arenas.

By default each thread may get an arena of its own, eight a core. Engines are opened and closed on new threads, and what
one arena has free serves no other: a consumer whose bundle is replaced again and again grows for a hundred replacements
before it stays. With two arenas it stays after a few, and answers as fast: most of what allocates holds the
interpreter's lock anyway.
"""

from __future__ import annotations

import ctypes

FEW = 2
_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def few_arenas(most: int = FEW) -> bool:
    """Have this process make no further arenas beyond so many. To be called before it starts its threads.

    Returns:
        Whether the C library took it; one that is not glibc has nothing to be told.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, or no such library
        return False
    return bool(mallopt(_M_ARENA_MAX, most))
