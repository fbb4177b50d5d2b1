"""Every command in README and documentation is one that exists, with flags that it has."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys

import click
import pytest
from pages import PAGES, ROOT, name, shell_lines

from adder_zoo.cli import main as command_line


def check_adder_zoo(words: list[str]) -> None:
    """The command exists and takes these options, and choices that it offers."""
    command = command_line.commands[words[0]]
    context = click.Context(command, info_name=words[0])
    given, _, _ = command.make_parser(context).parse_args(words[1:])
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice) and given.get(parameter.name) is not None:
            parameter.type.convert(given[parameter.name], parameter, context)


helps: dict[str, str] = {}


def check_script(words: list[str]) -> None:
    """The script exists, and its own ``--help`` knows every flag."""
    script, flags = words[0], [w.partition("=")[0] for w in words[1:] if w.startswith("--")]
    assert (ROOT / script).is_file(), script
    if script not in helps:
        helps[script] = help_of(script)
    known = helps[script]
    if script.startswith("recipes/paper/"):  # these hand other flags on to a recipe
        known += helps.setdefault("recipes/mnist.py", help_of("recipes/mnist.py"))
        known += helps.setdefault("recipes/cifar.py", help_of("recipes/cifar.py"))
    for flag in flags:
        assert re.search(rf"{re.escape(flag)}\b", known), f"{script} has no {flag}"


def help_of(script: str) -> str:
    argv, path, out = sys.argv, list(sys.path), io.StringIO()
    sys.argv, sys.path[:0] = [script, "--help"], [str((ROOT / script).parent)]
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path
    return out.getvalue()


def check_launcher(words: list[str]) -> None:
    """What stands before the recipe are options of the launcher; files that they name exist."""
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    for word in words[:script]:
        assert not word.endswith(".yaml") or (ROOT / word).is_file(), word
    check_script(words[script:])


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        assert "=" in word or re.search(rf"^{re.escape(word)}:", makefile, re.M), f"make has no target {word}"


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), extra


def check(line: str) -> None:
    words = shlex.split(line, comments=True)
    program, *rest = words
    if program == "adder-zoo":
        check_adder_zoo(rest)
    elif words[:2] == ["accelerate", "launch"]:
        check_launcher(words[2:])
    elif program == "torchrun":
        check_launcher(rest)
    elif program == "python":
        check_script(rest)
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)
    else:
        assert words in ([["hf", "auth", "login"]]), f"no rule says how to check {line!r}"


def commands() -> list[tuple[str, str]]:
    """Every command in a shell example, and every one in a line of text, with its page."""
    found = []
    for page in PAGES:
        if page.name == "changelog.md":
            continue
        lines = shell_lines(page)
        lines += re.findall(r"`((?:adder-zoo [a-z]|make [a-z]|python (?:recipes|benchmarks)/)[^`]*)`", page.read_text())
        found += [(name(page), line) for line in lines]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_exist(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(line)
