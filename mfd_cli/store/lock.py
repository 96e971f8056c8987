"""One process at a time writes a run folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mfd_cli.errors import MfdError
from mfd_cli.store.layout import LOCK

try:
    import fcntl
except ImportError:  # not on Windows, where two processes are not kept apart
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the system releases it however the process ends.

    Raises:
        MfdError: another process holds it; names that process and its host.
    """
    path = folder / LOCK
    with open(path, "a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # a holder that ends between our open and our lock takes the file with it: that lock guards nothing
                if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    raise BlockingIOError
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise MfdError(
                    f"{folder}: in use by {holder}", do="wait for it, or choose another folder with -o"
                ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
