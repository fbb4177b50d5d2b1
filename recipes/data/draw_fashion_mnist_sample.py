"""Draws the bundled Fashion-MNIST sample from the full data: 5,000 training and 1,000 test images, evenly by class.

    python recipes/data/draw_fashion_mnist_sample.py [--source /usr/share/datasets/fashion-mnist] [--output FOLDER]

The source is the folder with the four idx files, as Debian's package ``dataset-fashion-mnist`` installs it. An image is
drawn by the hash of its index, so no random number generator has a say: every machine draws the same images, in the
order of the full data.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = Path("/usr/share/datasets/fashion-mnist")
PER_CLASS = {"train": 500, "t10k": 100}
IMAGE = 28 * 28


def chosen(split: str, labels: bytes, per_class: int) -> list[int]:
    """Indices of ``per_class`` images of each class, ascending: those with the smallest SHA-256 of split and index."""
    order = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{split} {i}".encode()).digest())
    taken: dict[int, list[int]] = {}
    for i in order:
        members = taken.setdefault(labels[i], [])
        if len(members) < per_class:
            members.append(i)
    return sorted(i for members in taken.values() for i in members)


def draw(source: Path) -> dict[str, bytes]:
    """The four files of the sample, name -> idx bytes (not yet compressed)."""
    files = {}
    for split, per_class in PER_CLASS.items():
        images_name, labels_name = f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz"
        images = gzip.decompress((source / images_name).read_bytes())[16:]
        labels = gzip.decompress((source / labels_name).read_bytes())[8:]
        if len(images) != IMAGE * len(labels):
            raise ValueError(f"{source}: {len(images)} bytes of images do not fit {len(labels)} labels")
        indices = chosen(split, labels, per_class)
        pixels = b"".join(images[i * IMAGE : (i + 1) * IMAGE] for i in indices)
        files[images_name] = struct.pack(">4I", 0x0803, len(indices), 28, 28) + pixels
        files[labels_name] = struct.pack(">2I", 0x0801, len(indices)) + bytes(labels[i] for i in indices)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the bundled Fashion-MNIST sample from the full data.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the full data (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "fashion_mnist_sample", help="folder to write into")
    args = parser.parse_args()
    missing = [split for split in PER_CLASS if not (args.source / f"{split}-images-idx3-ubyte.gz").is_file()]
    if missing:
        parser.error(f"{args.source} has no {missing[0]}-images-idx3-ubyte.gz; apt-get install dataset-fashion-mnist")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, content in draw(args.source).items():
        compressed = gzip.compress(content, 9, mtime=0)
        (args.output / name).write_bytes(compressed)
        print(f"{name}: {len(compressed):,} bytes")


if __name__ == "__main__":
    main()
