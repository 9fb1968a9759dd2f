"""The C library's allocator, told to be modest (glibc only; elsewhere both calls do nothing).

Floor: base
"""

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h of glibc
ARENAS = 2  # one for the loop, one for the worker threads; by default every thread may keep one of its own


def limit_arenas() -> None:
    """Share few arenas between all threads, so that months of work leave no hoards behind. Call it first."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


def give_memory_back() -> None:
    """Return free memory to the system: 40 MiB of the 200 that stay otherwise after the model was read."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
