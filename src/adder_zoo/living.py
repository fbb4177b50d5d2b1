"""Which adder layers and optimizers are alive in this process.

A module of its own, so that they are still known after ``layers.py`` or ``optim.py`` was loaded again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any


class Living:
    """Objects that are remembered as long as they are in use, by identity.

    Any thread may add one while another goes through them, and one whose constructor failed is among them too: look
    into ``__dict__`` with care.
    """

    def __init__(self) -> None:
        self._by_id: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def add(self, thing: Any) -> None:
        self._by_id[id(thing)] = thing

    def __contains__(self, thing: Any) -> bool:
        return self._by_id.get(id(thing)) is thing

    def __iter__(self) -> Iterator[Any]:
        # valuerefs copies in one go; a walk over the dictionary itself would stumble over what other threads add.
        return (thing for ref in self._by_id.valuerefs() if (thing := ref()) is not None)


LAYERS: Living = globals().get("LAYERS") or Living()
OPTIMIZERS: Living = globals().get("OPTIMIZERS") or Living()
