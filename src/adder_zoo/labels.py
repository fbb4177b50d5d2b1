"""Which class is which: the names of a network's classes, and which folder or label of a data set is meant by each.

The number of classes proves nothing: a network names its classes (``label_names`` of its configuration), a user does
(a class map), or a tag says that the network is ImageNet's. Otherwise its classes have numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key

from .datasets.profiles import profile

ASSUMED = "assumed: "  # begins the note in a network's configuration that its preprocessing was never stated
SHOWN = 5  # names in a message


class LabelError(ValueError):
    """Names of classes that cannot be read or do not fit. The message says what to do."""


@dataclass(frozen=True)
class Labels:
    """The classes of a network.

    Attributes:
        count: How many there are.
        names: One for each, in the network's order; None where nobody names them.
        descriptions: A longer name by name, where there is one.
        given: Whether a user gave the names, which then must be the folders' names.
    """

    count: int
    names: tuple[str, ...] | None = None
    descriptions: Mapping[str, str] = field(default_factory=dict)
    given: bool = False

    def shown(self) -> list[str]:
        """What to show for each class: its description, its name or its number."""
        if self.names is None:
            return [str(i) for i in range(self.count)]
        return [self.descriptions.get(name, name) for name in self.names]

    def positions(self, found: Sequence[str], what: str = "folders") -> tuple[dict[str, int], str | None]:
        """The class of each of the names ``found`` (of folders, or of a data set's classes in order).

        They are matched by name, whatever the case and the signs between letters. Where a network names no classes,
        numbers are classes, synsets are ImageNet's for 1,000 classes, and as many folders as classes are taken in
        timm's order.

        Args:
            found: The names.
            what: What they are, for a message.

        Returns:
            The class by name; and a note for the user if the order is only a convention.

        Raises:
            LabelError: a name is none of the classes', or two mean the same one.
        """
        note = None
        numbers = _numbers(found, self.count)
        if self.names is not None:
            known = _by_name(self.names, self.descriptions)
            index = {name: known[_plain(name)] for name in found if _plain(name) in known}
            exact = {name: i for i, name in enumerate(self.names)}
            index |= {name: exact[name] for name in found if name in exact}
            if not index and numbers is not None and not self.given:
                index = numbers
                note = f"the network calls its classes {_few(self.names)}; the {what} are taken to be their numbers"
        elif numbers is not None:
            index = numbers
        else:
            index = _synsets(found) if self.count == 1000 else {}
            if not index and len(found) == self.count:
                ordered = sorted(found, key=natural_key)
                index = {name: i for i, name in enumerate(ordered)}
                note = f"the network names no classes, so they are taken to be {_few(ordered)} in this order"
        self._check(found, index, what)
        return index, note

    def _check(self, found: Sequence[str], index: Mapping[str, int], what: str) -> None:
        unknown = [name for name in found if name not in index]
        if unknown:
            raise LabelError(
                f"{len(found)} {what} and the network has {self.count} classes; these names are none of them: "
                f"{_few(unknown)}." + (f" Its classes are {_few(self.names)}." if self.names else "")
            )
        twice = [name for name in found if list(index.values()).count(index[name]) > 1] if _repeats(index) else []
        if twice:
            raise LabelError(f"the names {_few(twice)} mean the same class")


def labels_of(cfg: Mapping[str, Any], count: int, class_map: str | Path | None = None) -> Labels:
    """The classes of a network with ``count`` of them and timm's configuration ``cfg``; a class map has precedence.

    Raises:
        LabelError: the class map cannot be read, or has another number of names.
    """
    if class_map is not None:
        names = read_names(class_map)
        if len(names) != count:
            raise LabelError(f"{class_map} names {len(names)} classes, and the network has {count}")
        return Labels(count, tuple(names), given=True)
    said = cfg.get("label_names") or ()
    if isinstance(said, Mapping):
        said = [said[key] for key in sorted(said, key=_place)]
    names = [str(name) for name in said]
    if names and len(names) == count:
        return Labels(count, tuple(names), dict(cfg.get("label_descriptions") or {}))
    imagenet = profile("imagenet")
    if count == len(imagenet.classes) and imagenet.tag in str(cfg.get("tag") or "") and assumption(cfg) is None:
        return Labels(count, imagenet.classes, imagenet.descriptions)
    return Labels(count)


def _place(key: Any) -> tuple[int, str]:
    """Sorts the keys of named classes: numbers, which JSON makes texts of, as numbers."""
    return (int(key), "") if str(key).isdecimal() else (0, str(key))


def assumption(cfg: Mapping[str, Any]) -> str | None:
    """What of a network's preprocessing was assumed when it was imported; None where it was stated."""
    notes = cfg.get("notes") or ()
    for note in [notes] if isinstance(notes, str) else notes:
        if str(note).startswith(ASSUMED):
            return str(note).removeprefix(ASSUMED)
    return None


def read_names(path: str | Path) -> list[str]:
    """The names in a text file, one in a line, in the order of the classes.

    Raises:
        LabelError: it cannot be read, is not text in UTF-8, is empty, or has an empty line or a name twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{path} is not text in UTF-8 (byte {error.start} does not fit): save it in this encoding"
        ) from error
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    names = [line.strip() for line in lines]
    if not names:
        raise LabelError(f"{path} is empty: it must have the name of each class, one in a line")
    if "" in names:
        raise LabelError(f"line {names.index('') + 1} of {path} is empty: every line must name a class")
    check_names(names, str(path))
    return names


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses a name that stands twice.

    Raises:
        LabelError: see above.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise LabelError(f"{where} has the class {name!r} twice")
        seen.add(name)


def _plain(name: str) -> str:
    """A name without case, spaces and signs, which folders often cannot have: "T-shirt/top" is "tshirttop"."""
    return "".join(c for c in name.casefold() if c.isalnum())


def _by_name(names: Sequence[str], descriptions: Mapping[str, str]) -> dict[str, int]:
    """The class by plain name and by plain description, without those that several classes have."""
    index: dict[str, int] = {}
    several = set()
    for texts in (names, [descriptions.get(name, name) for name in names]):
        for i, text in enumerate(texts):
            if index.setdefault(_plain(text), i) != i:
                several.add(_plain(text))
    return {text: i for text, i in index.items() if text not in several and text}


def _numbers(found: Sequence[str], count: int) -> dict[str, int] | None:
    """The number that each name is, where all of them are numbers of classes."""
    if not all(name.isascii() and name.isdecimal() and int(name) < count for name in found):
        return None
    return {name: int(name) for name in found}


def _synsets(found: Sequence[str]) -> dict[str, int]:
    index = {name: i for i, name in enumerate(profile("imagenet").classes)}
    return {name: index[name] for name in found} if all(name in index for name in found) else {}


def _repeats(index: Mapping[str, int]) -> bool:
    return len(set(index.values())) < len(index)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
