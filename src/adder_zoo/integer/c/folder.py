"""``export_c``: a folder with an integer network as C99, a program around it, and test vectors."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from ... import atomic
from ..network import IntegerNetwork
from ..steps import Lookup, Weighted
from .plan import plan
from .source import as_text, header, source

# fmt: off
KEYWORDS = frozenset((
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float",
    "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof",
    "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "main", "layers",
    "groups", "steps", "wasm",
))
# fmt: on
MOST_VECTORS = 16
HEADERS = ("layers.h", "groups.h", "steps.h", "wasm.h")


def export_c(
    network: IntegerNetwork, folder: str | Path, name: str, images: Tensor, *, replace: bool = False
) -> dict[str, Any]:
    """Writes ``network`` as C99 into a folder of its own.

    The folder gets NAME.h and NAME.c (no library, no heap, no floating point), layers.h with what it includes, main.c,
    a Makefile (``make`` builds ``run``, ``make test`` holds it against the test vectors) and vectors/: raw images, the
    logits of each, and every tensor of the first image as a text file.

    Args:
        network: What ``adder_zoo.to_integers`` returned.
        folder: A new or an empty one.
        name: A C identifier; functions and files are named after it.
        images: uint8 [N, H, W, C], for the test vectors; the first 16 are used.
        replace: Whether a folder that holds something is replaced.

    Returns:
        "buffer_bytes", "constant_bytes" (filters and scales) and "vectors" (how many images).

    Raises:
        TypeError: ``network`` is not an integer network.
        ValueError: name is not a C identifier, or there are no images.
        FileExistsError: the folder is not empty.
    """
    if not isinstance(network, IntegerNetwork):
        raise TypeError(
            f"export_c: network must be what adder_zoo.to_integers returns, got {type(network).__name__}. Of a float "
            "network: small = adder_zoo.quantize(model, normalised), then adder_zoo.to_integers(small, pixels)"
        )
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in KEYWORDS:
        raise ValueError(
            f"export_c: {name!r} is not a C identifier; take letters, digits and underscores, a letter first"
        )
    images = images[:MOST_VECTORS]
    if not len(images):
        raise ValueError("export_c: give at least one image for the test vectors")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not replace)):
        raise FileExistsError(f"{folder} is not an empty folder; name a new one")
    planned = plan(network)
    with atomic.replace_folder(folder) as part:
        (part / f"{name}.h").write_text(header(name, network, planned))
        text = source(name, network, planned)
        (part / f"{name}.c").write_text(text)
        own = files(__package__) / "files"
        for file in HEADERS:
            (part / file).write_text((own / file).read_text())
        for file in ("main.c", "Makefile"):
            content = (own / file).read_text()
            (part / file).write_text(content.replace("network_name", name).replace("NETWORK_NAME", name.upper()))
        _write_vectors(part / "vectors", network, images)
    return {"buffer_bytes": planned.size, "constant_bytes": _constant_bytes(network), "vectors": len(images)}


def _write_vectors(folder: Path, network: IntegerNetwork, images: Tensor) -> None:
    (folder / "activations").mkdir(parents=True)
    (folder / "images.bin").write_bytes(images.contiguous().numpy().tobytes())
    (folder / "first_image.bin").write_bytes(images[0].contiguous().numpy().tobytes())
    logits = network(images)
    lines = [f"{' '.join(map(str, row))}: {max(range(len(row)), key=row.__getitem__)}\n" for row in logits.tolist()]
    (folder / "logits.txt").write_text("".join(lines))
    for number, (name, value) in enumerate(network.activations(images[:1]).items()):
        (folder / "activations" / f"{number:02d}_{name}.txt").write_text(f"# {name}\n{as_text(value[0])}")


def _constant_bytes(network: IntegerNetwork) -> int:
    """Filters, and 12 bytes for each filter's scale, offset and sum."""
    from .plan import patch_words

    weighted = [step for step in network.steps if isinstance(step, Weighted)]
    tables = sum(step.table.numel() for step in network.steps if isinstance(step, Lookup))
    return tables + sum(len(step.weight) * (4 * patch_words(step) + 12) + len(step.pad) for step in weighted)
