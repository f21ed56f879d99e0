"""Entries of a cache folder that many processes share: one process makes an entry while the others wait for it."""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems

log = structlog.get_logger(__name__)


def make_once(
    target: Path, make: Callable[[Path], Path], is_complete: Callable[[Path], bool] = Path.exists
) -> None:
    """Make a file or folder unless it is complete, and rename it into place.

    A process that is killed releases its lock, and the next one starts over. Where the file system has no locks,
    several processes may make the same entry, and the first to finish wins. A complete entry needs no write access.

    Args:
        make: gets an empty folder and returns what it has made in it. Its errors pass through.

    Raises OSError if the folder of `target` cannot be written.
    """
    if is_complete(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"making-{target.name}-"
    with _locked(target.with_name(f"{target.name}.lock")) as is_alone:
        if is_complete(target):
            return
        if is_alone:
            for leftover in target.parent.glob(f"{prefix}*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as work:
            made = make(Path(work))
            try:
                _replace(made, target)
            except OSError:
                if is_alone or not is_complete(target):
                    raise


def _replace(made: Path, target: Path) -> None:
    if target.is_dir():  # incomplete
        shutil.rmtree(target, ignore_errors=True)
    made.rename(target)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a file lock. Yield False where the file system has none."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("cache_wait", entry=path.stem)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in LOCKS_UNSUPPORTED:
                raise
            log.warning("cache_unlocked", entry=path.stem, reason=error.strerror)
            yield False
            return
        yield True
