"""A file for `doctor --box` to read from the disk and not from memory. It keeps no name: nothing is left, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 16 * 2**20


class ScratchFile:
    """Blocks of a file, read in order and again from the beginning, never from the page cache."""

    def __init__(self, descriptor: int, size_bytes: int):
        self.size_bytes, self._descriptor, self._offset = size_bytes, descriptor, 0
        self.way = "O_DIRECT" if asks_the_disk(descriptor) else "page cache dropped (no O_DIRECT here)"
        # A map of its own begins at a page, as O_DIRECT wants it.
        self._block = mmap.mmap(-1, BLOCK_BYTES)
        self._forget()

    def read_block(self) -> None:
        if self._offset == self.size_bytes:
            self._offset = 0
            self._forget()
        if os.preadv(self._descriptor, [self._block], self._offset) != BLOCK_BYTES:
            raise OSError("the disk gave less of a file than was written")
        self._offset += BLOCK_BYTES

    def _forget(self) -> None:
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def asks_the_disk(descriptor: int) -> bool:
    """Switch O_DIRECT on; False where the file system has no such thing."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
        return True
    return False


@contextlib.contextmanager
def scratch_file(folder: Path, size_bytes: int, seconds: float) -> Iterator[ScratchFile]:
    """A file of random bytes in the folder, on its disk: so large, or as large as could be written in the time."""
    with tempfile.TemporaryFile(dir=folder) as file:
        written, deadline_s = 0, time.perf_counter() + seconds
        while written < size_bytes and (not written or time.perf_counter() < deadline_s):
            # Each block anew: some file systems keep equal ones once.
            file.write(os.urandom(BLOCK_BYTES))
            file.flush()
            # Only what the disk has may be dropped from the page cache.
            os.fsync(file.fileno())
            written += BLOCK_BYTES
        yield ScratchFile(file.fileno(), written)
