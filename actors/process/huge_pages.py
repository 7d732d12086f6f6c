"""Large pages for large tensors on CPUs: torch asks the system for them where it is told to."""

from __future__ import annotations

import os


def use_huge_pages() -> None:
    """Let torch ask for huge pages for tensors of 2 MiB and more, unless the user has said otherwise.

    Call it before torch is imported; processes that are started from this one do the same. A new tensor is then made
    of 2 MiB pages in place of 4 KiB ones, where Linux allows it on request ("madvise" in
    /sys/kernel/mm/transparent_hugepage/enabled): a copy of 44 MB into a new tensor took 8 ms in place of 33, by

        THP_MEM_ALLOC_ENABLE=1 python -m timeit -s "import torch; a = torch.randn(2048 * 5440)" "a.clone()"
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
