"""How fast networks in bytes were measured to be: what ``benchmarks/results/int8-*.json`` of a checkout says."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..paths import checkout


@dataclass(frozen=True)
class Timed:
    """One measurement of a network in bytes.

    Attributes:
        processor: On what, with the instructions where they were held back.
        threads: How many.
        batch: Images at a time.
        over_twin: How many times as fast as the convolutional twin in float32.
        over_float: The same of the adder network in float32.
    """

    processor: str
    threads: int
    batch: str
    over_twin: float
    over_float: float


def timed(architecture: str) -> list[Timed]:
    """The measurements of a network of the zoo, by file; none outside of a checkout."""
    root = checkout()
    found = []
    for file in sorted((root / "benchmarks" / "results").glob("int8-*.json")) if root is not None else ():
        record = json.loads(file.read_text(encoding="utf-8"))
        held_back = f", {record['isa']} only" if "best" not in record["isa"] else ""
        for name, times in record["networks"].items():
            model, _, batch = name.partition(", batch ")
            if model == architecture:
                found.append(
                    Timed(
                        record["processor"] + held_back,
                        record["threads"],
                        batch,
                        times["over conv"],
                        times["over adder"],
                    )
                )
    return found
