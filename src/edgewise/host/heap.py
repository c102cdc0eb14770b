"""A heap that gives back what it does not need: for processes that handle a few large buffers."""

from __future__ import annotations

from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE: Final = 1 << 20


def return_large_buffers() -> None:
    """Tell glibc, mallopt(3), to return buffers of a MiB and more when they are freed, and to
    keep one heap for all threads. Left to itself it learns from the first large buffer to keep
    such ones: 20 MiB more at the peak of a fetch. Nothing happens with another libc."""
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    for what, value in (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, _LARGE),
        (_M_TRIM_THRESHOLD, _LARGE),
    ):
        libc.mallopt(what, value)
