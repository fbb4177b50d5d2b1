"""Writing that cannot be left half done: a file or a folder is the old one or the new one, after a kill or a full disk.

    replace_file(path)       a file
    replace_folder(path)     a whole folder: what it held before is gone
    replace_files(folder)    some files of a folder that keeps its others

Each is a context manager that hands out a temporary place beside the target. When the block ends well, what was
written there is brought to the disk (fsync) and takes the target's place by a rename; when it raises, the temporary
place is removed and the target is as it was. A killed process leaves its temporary place behind, which the next one
that writes to the same target on the same machine removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = ".part"  # in the names of all temporary places, before the target's own ending
_NAME_LENGTH = 40  # of a part of a temporary name: file systems take 255 bytes, and a character has up to four


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Hands out a path to write a file to, which becomes ``path`` when the block ends well.

    Raises:
        OSError: the folder of ``path`` is missing or may not be written to, ``path`` is a folder, or the disk is full.
    """
    path = _target(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    part = _part(path)
    try:
        yield part
        to_disk(part)
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    to_disk(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Writes ``text`` as UTF-8, whole or not at all."""
    with replace_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Hands out an empty folder to fill, which becomes ``path`` when the block ends well; parents are made.

    The two folders are exchanged in one step where the system can (Linux, macOS). Elsewhere there is a moment, between
    two renames, in which a kill leaves no folder at ``path``; ``restore_folder`` then brings the old one back.

    Raises:
        OSError: ``path`` is a file, a mount point or the current folder, or may not be replaced; or the disk is full.
    """
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not restore_folder(path):
        shutil.rmtree(_old(path), ignore_errors=True)  # of a process that was killed while it removed it
    if path.exists():
        _check_replaceable(path)
    part = _made(path)
    try:
        yield part
        _tree_to_disk(part)
        if path.exists():
            shutil.copymode(path, part)
        _put_in_place(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    to_disk(path.parent)


def restore_folder(path: str | Path) -> bool:
    """Brings the folder back that a kill in ``replace_folder`` took away; whether there was one.

    Only needed where the system cannot exchange two folders. It is called by ``replace_folder`` itself.
    """
    path = _target(path)
    old = _old(path)
    if path.exists() or not old.exists():
        return False
    old.rename(path)
    return True


@contextlib.contextmanager
def replace_files(folder: str | Path) -> Iterator[Path]:
    """Hands out an empty folder to fill, whose files go into ``folder`` when the block ends well; other files stay.

    Every file is the old or the new one; they change one after the other, in the order of their names, so only a kill
    between two renames leaves some old and some new. ``folder`` is made if it is missing.

    Raises:
        OSError: ``folder`` is a file or may not be written to, the block made a folder, or the disk is full.
    """
    folder = _target(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = _made(folder / "files")
    try:
        yield part
        _tree_to_disk(part)
        for file in sorted(part.iterdir()):
            if file.is_dir() or (folder / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(folder / file.name))
        for file in sorted(part.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    to_disk(folder)


def to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's names, would outlive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tree_to_disk(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        to_disk(path)
    to_disk(folder)


def _target(path: str | Path) -> Path:
    """The absolute path, links resolved: what a link leads to is replaced, and the link stays."""
    return Path(os.path.realpath(path))


def _part(path: Path) -> Path:
    """A new temporary name beside ``path``; those that processes of this machine left when they were killed go."""
    start = f".{path.name[:_NAME_LENGTH]}.{platform.node()[:_NAME_LENGTH]}-"
    for left in path.parent.glob(f"{_escaped(start)}*{MARK}*"):
        pid = left.name[len(start) :].partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)):
            _remove(left)
    return path.with_name(f"{start}{os.getpid()}-{uuid.uuid4().hex[:8]}{MARK}{path.suffix[:_NAME_LENGTH]}")


def _made(path: Path) -> Path:
    """A temporary folder; an error names the target, which the user knows."""
    part = _part(path)
    try:
        part.mkdir()
    except OSError as error:
        raise type(error)(error.errno, f"a folder cannot be made here ({error.strerror})", str(path)) from error
    return part


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name[:_NAME_LENGTH]}.old{MARK}")


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    if os.name == "nt":
        return True  # there is no harmless signal to ask with
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def _check_replaceable(path: Path) -> None:
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(path))
    if os.path.ismount(path):
        raise OSError(errno.EBUSY, "is a mount point, which cannot be replaced: name a folder inside it", str(path))
    if path == Path(os.path.realpath(os.curdir)):
        raise OSError(errno.EBUSY, "is the current folder, which cannot be replaced: name a new one", str(path))


def _put_in_place(part: Path, path: Path) -> None:
    """Renames ``part`` to ``path``; what was there takes the name ``part``, or is gone."""
    if not path.exists():
        part.rename(path)
    elif not _exchange(part, path):
        old = _old(path)
        path.rename(old)
        try:
            part.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    if os.name != "posix":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(a), os.fsencode(b)
    if hasattr(library, "renamex_np"):  # macOS
        failed = library.renamex_np(first, second, 2)  # RENAME_SWAP
    elif hasattr(library, "renameat2"):  # Linux
        failed = library.renameat2(-100, first, -100, second, 2)  # AT_FDCWD, RENAME_EXCHANGE
    else:
        return False
    if not failed:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(error, os.strerror(error), str(b))
