"""What the forward of a layer can reach with AVX2, by a model of the processor's ports and callgrind's instructions.

    make driver && python benchmarks/limits.py build/driver [--layer "8 64 56 64 3 1" ...]

A layer is N C H K R STRIDE.

The tiles' loops take, as a multiple of a convolution's tile and its 0.5 cycles for a vector of a tap, what `tiles.cpp`
measured on Zen 3, and what the ports of Intel's cores from Alder Lake on allow; everything else (rows copied and
summed, filters packed, tests, stores) is taken to run at three instructions a cycle. Against that stands a convolution
that does all taps inside of the image in its tile and nothing else: oneDNN, which a layer is measured against, is
slower than that. The model knows no memory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

LAYERS = (
    *("32 16 32 16 3 1", "32 32 16 32 3 1", "32 64 8 64 3 1", "8 64 56 64 3 1", "8 128 28 128 3 1", "8 256 14 256 3 1"),
    *("8 512 7 512 3 1", "8 64 56 256 1 1", "8 1024 14 256 1 1"),
    *("32 16 32 32 3 2", "32 32 16 64 1 2", "8 512 28 1024 1 2"),
)
CONVOLUTION = 0.5  # cycles for a vector of a tap: two fmas a cycle
TIMES = {  # multiples of that by pixels of the tile
    "Zen 3": {5: 1.03, 4: 1.12},  # tiles.cpp
    "Intel": {5: 4 / 3, 4: 4 / 3},  # a maximum and an addition for three ports, of which an fma has two
}
PIXELS = (5, 4)
# Of a loop of four taps: two loads of filters, for each pixel one of x, two maxima and two fmas; and four to go on.
INSTRUCTIONS = {pixels: (4 * (2 + 5 * pixels) + 4) / (4 * 2 * pixels) for pixels in PIXELS}
OTHERS = 3  # instructions a cycle


def counted(driver: Path, layer: str) -> dict[str, int]:
    """Instructions by function, within adder_forward."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/callgrind.out"
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=adder_forward", f"--callgrind-out-file={out}"]
        subprocess.run([*command, driver, "layer", "forward", "avx2", *layer.split()], check=True, capture_output=True)
        annotate = ["callgrind_annotate", "--threshold=100", out]
        text = subprocess.run(annotate, check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^\s*([\d,]+) \([\d. ]+%\)  \S*?:(.*)$", text, re.M)
    return {name: int(count.replace(",", "")) for count, name in rows}


def taps(layer: str, columns_of_padding: bool) -> int:
    """Vectors of taps of all outputs: inside of the image, or with columns of padding, as the tiles take them."""
    N, C, H, K, R, stride = (int(n) for n in layer.split())
    pad = R // 2
    P = (H + 2 * pad - R) // stride + 1
    inside = sum(0 <= p * stride - pad + r < H for p in range(P) for r in range(R))
    return N * inside * (P * R if columns_of_padding else inside) * C * K // 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("driver", type=Path)
    parser.add_argument("--layer", action="append", help='"N C H K R STRIDE"; default: some of ResNet-20 and ResNet-50')
    args = parser.parse_args()
    titles = ("N, C, H, K, R, stride", "in tiles of 5", "of 4", "taps on padding", "other instructions")
    print(f"| {' | '.join([*titles, *(f'limit, {processor}' for processor in TIMES)])} |")
    print("|---" * (len(titles) + len(TIMES)) + "|")
    for layer in args.layer or LAYERS:
        counts = counted(args.driver.resolve(), layer)
        total = sum(counts.values())
        tiles = {
            pixels: sum(n for name, n in counts.items() if f"forward_tile<adder_avx2::Vec8, {pixels}, 2, false" in name)
            for pixels in PIXELS
        }
        if not sum(tiles.values()):
            parser.error(f"layer {layer}: no tiles of two vectors with maxima; fewer than 32 taps take differences")
        inside, done = taps(layer, False), taps(layer, True)
        # A tile is its loop and some instructions around it; the loops' are known, as all taps are.
        by_size = {pixels: n / INSTRUCTIONS[pixels] for pixels, n in tiles.items()}
        vectors = {pixels: done * n / sum(by_size.values()) for pixels, n in by_size.items()}
        others = total - sum(n * INSTRUCTIONS[pixels] for pixels, n in vectors.items())
        shares = [*(n / done for n in vectors.values()), 1 - inside / done, others / total]
        limits = []
        for times in TIMES.values():
            cycles = sum(n * times[pixels] * CONVOLUTION for pixels, n in vectors.items()) + others / OTHERS
            limits.append(inside * CONVOLUTION / cycles)
        row = [*(f"{100 * share:.0f} %" for share in shares), *(f"{limit:.2f}" for limit in limits)]
        print(f"| {layer} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
