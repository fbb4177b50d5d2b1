"""PREDICTED times of adder layers on GPUs, from the machine code of the kernels. Nothing here was timed.

    python benchmarks/model.py [--card H100 ...] [--batch 256] [--json FILE]

For each layer of ResNet-18 and ResNet-50, forward and dx in float32 (NCHW), with what ``sass.py`` counts:

    blocks  = ceil(M / BLOCK_M)·ceil(K / BLOCK_N)          (dx: pixels of each phase, channels; x the parts, if cut)
    turns   = taps of the filter·ceil(C / COLUMNS) / parts (dx: of the phase)
    cycles  = issue(loop)·turns + OUTSIDE                  of one warp on its scheduler
    t_issue = ceil(blocks / SMs)·warps·cycles / schedulers / clock
    t_bytes = (what must be read and written once) / bandwidth
    t       = max(t_issue, t_bytes) + 3 µs a launch

issue(loop): a scheduler issues one instruction a clock; where it has 16 lanes (A100), arithmetic takes two. On MI300X
only vector instructions count, four clocks each for 64 lanes. OUTSIDE is what a block does before and after its loop.
The last, partly filled round of blocks costs a whole one: that is the tile and wave effect. dw is a convolution of the
library: 2 operations a tap at EFFICIENCY of the card's fp32 peak without TF32.

Assumed and not known: that a scheduler with two to four warps issues every clock (cache misses, bank conflicts and
barriers cost nothing), that FADD2 (sm_100) issues at full rate, the clocks. So a measured time should lie above. An
epoch is 1,281,167 images, adder layers alone: no batch norm, first layer, optimizer or data.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import sass
import torch
from layers import NETWORKS, Layer

IMAGES = 1_281_167
OUTSIDE = 1500  # instructions of a warp before and after its loop: offsets, bits of the taps, the tile's way to memory
LAUNCH = 3e-6
EFFICIENCY = 0.7


@dataclass(frozen=True)
class Card:
    arch: str
    processors: int
    lanes: int  # fp32 additions a clock and processor
    clock: float  # Hz, under load
    bandwidth: float  # bytes/s

    def cycles(self, mix: dict[str, int]) -> float:
        """Clocks of a scheduler for a warp's turn of the loop."""
        if self.arch.startswith("gfx"):
            return 4 * sum(n for name, n in mix.items() if name.startswith("v_"))
        total = sum(mix.values())
        math_ = sum(n for name, n in mix.items() if name in sass.MATH)
        return max(total, math_ * 128 / self.lanes)


CARDS = {
    "A100": Card("sm_80", 108, 64, 1.41e9, 2.04e12),
    "H100": Card("sm_90", 132, 128, 1.755e9, 3.35e12),
    "B200": Card("sm_100", 148, 128, 1.85e9, 8.0e12),
    "MI300X": Card("gfx942", 304, 128, 2.1e9, 5.3e12),
}


def direction_time(card: Card, layer: Layer, batch: int, direction: str, launch, count: sass.Count) -> dict[str, float]:
    """Seconds and their parts for one launch."""
    c = launch.constants
    steps = layer.R**2 * math.ceil((layer.C if direction == "forward" else layer.K) / c["COLUMNS"])
    phases = 1 if direction == "forward" else layer.stride**2
    blocks = launch.programs
    parts = 1
    if 2 * blocks <= card.processors:  # as the launchers cut it
        parts = max(1, min(card.processors // blocks, math.ceil(steps / phases) // 8, 16))
    turns = steps / phases / parts  # on average over the phases
    warps, schedulers = launch.num_warps, 4
    cycles = card.cycles(count.mix) * turns + OUTSIDE * (4 if card.arch.startswith("gfx") else 1)
    issue = math.ceil(blocks * parts / card.processors) * warps * cycles / schedulers / card.clock
    x, y, w = batch * layer.C * layer.H**2, batch * layer.K * layer.P**2, layer.C * layer.K * layer.R**2
    elements = x + y + 3 * w if direction == "forward" else 2 * x + 2 * y + 3 * w  # filters are packed; Σ dy reads dy
    memory = 4 * elements / card.bandwidth
    seconds = max(issue, memory) + (2 + (direction == "dx")) * LAUNCH
    return {"seconds": seconds, "issue": issue, "memory": memory, "blocks": blocks * parts}


def predict(name: str, batch: int, networks: list[str]) -> dict:
    card = CARDS[name]
    hip = card.arch.startswith("gfx")
    counts: dict[tuple, sass.Count] = {}
    answer: dict = {"card": name, "batch": batch, "predicted": True, "networks": {}}
    for network in networks:
        rows, totals = [], {"forward": 0.0, "dx": 0.0, "dw": 0.0}
        for layer in NETWORKS[network]():
            row: dict = {"layer": layer.name, "count": layer.count}
            for direction, launch in sass.plans(layer, batch, torch.float32, torch.contiguous_format, hip):
                if direction == "dw":
                    seconds = 2 * layer.taps * batch / (EFFICIENCY * 2 * card.lanes * card.processors * card.clock)
                    row["dw"] = {"seconds": seconds}
                else:
                    names = sass.describe(direction, launch)
                    if names not in counts:
                        counts[names] = sass.count(names, launch, card.arch)
                    row[direction] = direction_time(card, layer, batch, direction, launch, counts[names])
                    row[direction]["taps_per_s"] = layer.taps * batch / row[direction]["seconds"]
                totals[direction] += layer.count * row[direction]["seconds"]
            rows.append(row)
        hours = {k: v * IMAGES / batch / 3600 for k, v in totals.items()}
        answer["networks"][network] = {"layers": rows, "hours_per_epoch": {**hours, "all": sum(hours.values())}}
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", nargs="+", choices=CARDS, default=list(CARDS))
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    answers = []
    for card in options.card:
        answers.append(predict(card, options.batch, options.network))
        for network, found in answers[-1]["networks"].items():
            print(f"\nPREDICTED, {card}, {network}, batch {options.batch}: ms, T taps/s")
            for row in found["layers"]:
                both = [(d, 1e3 * row[d]["seconds"], row[d]["taps_per_s"] / 1e12) for d in ("forward", "dx")]
                parts = (f"{d} {ms:7.3f} {rate:5.1f}" for d, ms, rate in both)
                print(f"  {row['count']} x {row['layer']:22} {'   '.join(parts)}")
            hours = ", ".join(f"{k} {v:.3f}" for k, v in found["hours_per_epoch"].items())
            print(f"  hours for an epoch of ImageNet, adder layers alone: {hours}")
    if options.json:
        options.json.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
