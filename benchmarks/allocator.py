# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of glibc's memory allocator."""

import ctypes
import sys


# Parameters of mallopt (malloc.h), in bytes.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """
    Let glibc keep freed memory for later allocations.

    By default, earlier allocations decide whether a call must fetch its memory from the system, page by page, so that
    chance would favor one contender over another.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**30)  # free memory at the end of the heap that is not returned
        library.mallopt(M_TOP_PAD, 2**28)  # growth of the heap
        library.mallopt(M_MMAP_THRESHOLD, 2**25)  # glibc's maximum; larger blocks are fetched and returned each time
