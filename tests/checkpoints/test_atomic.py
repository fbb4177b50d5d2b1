"""Files and folders are old or new, never half: after an error, a kill at any point, on a full disk, two at once."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from adder_zoo import atomic
from adder_zoo.atomic import replace_file, replace_files, replace_folder, restore_folder, write_text


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def fill(folder, text):
    (folder / "a").write_text(text)
    (folder / "deep").mkdir()
    (folder / "deep" / "b").write_text(text)


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    fill(folder, "old")
    (folder / "c").write_text("old")
    return folder


@pytest.fixture(params=["exchange", "two renames"])
def either(request, monkeypatch):
    """Both ways of replacing a folder by another."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)


# ---- what it does when all goes well


def test_file(tmp_path):
    write_text(tmp_path / "x.txt", "grün")
    assert (tmp_path / "x.txt").read_bytes() == "grün".encode()
    (tmp_path / "x.txt").chmod(0o640)
    with replace_file(tmp_path / "x.txt") as part:
        assert part.suffix == ".txt"  # some writers look at it
        part.write_text("new")
        assert (tmp_path / "x.txt").read_text() == "grün"
    assert (tmp_path / "x.txt").read_text() == "new"
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["x.txt"]


def test_folder(old, either):
    old.chmod(0o750)
    with replace_folder(old) as part:
        fill(part, "new")
        assert content(old)["a"] == "old"
    assert content(old) == {"a": "new", "deep/b": "new"}
    assert old.stat().st_mode & 0o777 == 0o750
    assert os.listdir(old.parent) == ["target"]


def test_folder_that_is_new(tmp_path):
    with replace_folder(tmp_path / "x" / "y.z") as part:
        fill(part, "new")
    assert content(tmp_path / "x" / "y.z") == {"a": "new", "deep/b": "new"}
    mode = tmp_path.joinpath("x/y.z").stat().st_mode & 0o777
    (tmp_path / "other").mkdir()
    assert mode == (tmp_path / "other").stat().st_mode & 0o777  # not the 0700 of a temporary folder


def test_some_files(old):
    with replace_files(old) as part:
        (part / "a").write_text("new")
        (part / "d").write_text("new")
    assert content(old) == {"a": "new", "d": "new", "c": "old", "deep/b": "old"}
    assert sorted(os.listdir(old)) == ["a", "c", "d", "deep"]


def test_links_stay(old):
    link = old.with_name("link")
    link.symlink_to(old, target_is_directory=True)
    with replace_folder(link) as part:
        fill(part, "new")
    assert link.is_symlink()
    assert content(old) == {"a": "new", "deep/b": "new"}


def test_long_names(tmp_path):
    name = "ä" * 120 + ".x"
    write_text(tmp_path / name, "new")
    with replace_folder(tmp_path / (name + "y")) as part:
        fill(part, "new")
    assert len(os.listdir(tmp_path)) == 2


def test_two_at_once(old, either):
    """The later one wins, whole."""
    with replace_folder(old) as first:
        fill(first, "first")
        with replace_folder(old) as second:
            fill(second, "second")
        assert content(old) == {"a": "second", "deep/b": "second"}
    assert content(old) == {"a": "first", "deep/b": "first"}
    assert os.listdir(old.parent) == ["target"]


# ---- errors


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old(old, error):
    before = content(old)

    def broken(replace, target):
        with replace(target) as part:
            if part.is_dir():
                fill(part, "new")
            else:
                part.write_text("half")
            raise error

    for replace, target in ((replace_folder, old), (replace_files, old), (replace_file, old / "a")):
        with pytest.raises(type(error)):
            broken(replace, target)
        assert content(old) == before
    assert content(old) == before
    assert os.listdir(old.parent) == ["target"]


def test_content_that_does_not_reach_the_disk_does_not_count(old, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = content(old)
    monkeypatch.setattr(os, "fsync", full)
    for replace in (replace_folder, replace_files):
        with pytest.raises(OSError, match="No space"), replace(old) as part:
            (part / "a").write_text("new")
    with pytest.raises(OSError, match="No space"):
        write_text(old / "a", "new")
    assert content(old) == before
    assert os.listdir(old.parent) == ["target"]


def test_what_cannot_be_replaced(old, monkeypatch):
    with pytest.raises(NotADirectoryError), replace_folder(old / "a"):
        pass
    with pytest.raises(IsADirectoryError), replace_file(old / "deep"):
        pass
    with pytest.raises(IsADirectoryError), replace_files(old) as part:
        [(part / name).write_text("new") for name in ("a", "deep")]
    assert content(old)["a"] == "old"
    with pytest.raises(OSError, match="mount point"), replace_folder("/proc"):
        pass
    monkeypatch.chdir(old)
    with pytest.raises(OSError, match="current folder"), replace_folder("."):
        pass
    with pytest.raises(FileNotFoundError):
        write_text(old / "missing" / "a", "new")
    assert sorted(os.listdir(old)) == ["a", "c", "deep"]


# ---- kills

KILLED = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, {source!r})
    import atomic
    if {renames}:
        atomic._exchange = lambda a, b: False
    left = int(sys.argv[2])

    def counted(name, module):
        original = getattr(module, name)
        def call(*args, **kwargs):
            global left
            if not left:
                os._exit(9)
            left -= 1
            return original(*args, **kwargs)
        setattr(module, name, call)

    for name in ("fsync", "mkdir", "chmod", "unlink", "rmdir", "rename", "replace", "open"):
        counted(name, os)
    for name in ("_exchange", "_put_in_place"):
        counted(name, atomic)
    with atomic.replace_folder(sys.argv[1]) as part:
        for name in ("a", "b"):
            (part / name).write_text("new")
    os._exit(0)
"""


@pytest.mark.parametrize("renames", [False, True], ids=["exchange", "two renames"])
def test_killed_at_any_step(tmp_path, renames):
    """A child that dies before its n-th call of the system, for any n, leaves one of the two; the next one tidies."""
    script = tmp_path / "child.py"
    source = str(Path(atomic.__file__).parent)
    script.write_text(textwrap.dedent(KILLED.format(source=source, renames=renames)))
    seen = set()
    for n in range(200):
        folder = tmp_path / f"place{n}" / "target"
        folder.mkdir(parents=True)
        (folder / "a").write_text("old")
        done = subprocess.run([sys.executable, "-S", script, folder, str(n)], capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        restored = restore_folder(folder)
        assert renames or not restored
        found = content(folder)
        assert found in ({"a": "old"}, {"a": "new", "b": "new"})
        seen.add((found["a"], restored))
        with replace_folder(folder) as part:
            (part / "a").write_text("newer")
        assert content(folder) == {"a": "newer"}
        left = [name for name in os.listdir(folder.parent) if name != "target"]
        assert not left, (n, left)
        if done.returncode == 0:
            break
    else:
        raise AssertionError("never came to its end")
    assert seen == {("old", False), ("new", False), *([("old", True)] if renames else [])}


def test_places_of_living_processes_are_left_alone(tmp_path):
    with replace_folder(tmp_path / "x") as part:
        other = part.with_name(part.name.replace(str(os.getpid()), str(os.getppid())))
        other.mkdir()
    write_text(tmp_path / "x" / "y", "new")
    with replace_folder(tmp_path / "x"):
        pass
    assert other.is_dir()
