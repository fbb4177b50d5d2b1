"""Images from files, as timm's networks take them: whatever PIL reads, and an error that names the file otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


class ImageError(ValueError):
    """A file that is not an image, or a damaged one."""


def open_image(path: str | Path, channels: int = 3) -> Image.Image:
    """The first frame of an image in RGB, or in grey for ``channels`` = 1.

    Pixels are those that timm's own loader gives (transparency is dropped, EXIF rotation is not applied); images of 16
    bits are scaled to 8 instead of clipped.

    Raises:
        ImageError: the file cannot be read; says why.
    """
    try:
        with Image.open(path) as image:
            image.load()
            deep = image.mode.startswith("I") or image.mode == "F"
            return (_eight_bits(image) if deep else image).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that can be read") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{path} cannot be read: {reason}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of one channel with more than 8 bits, scaled: 65535 (or 1.0 for floats up to it) becomes 255."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = values * (255 if values.max(initial=0) <= 1 else 1)
    elif image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def find_images(paths: Iterable[str | Path]) -> Iterator[tuple[Path, bool]]:
    """The files that ``paths`` name, those in folders sorted and found at any depth, and whether each may be an image.

    A file that was named outright always may be; one in a folder if its ending is an image's.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for path in map(Path, paths):
        if path.is_dir():
            for folder, folders, files in os.walk(path):
                folders.sort()
                for name in sorted(files):
                    yield Path(folder) / name, Path(name).suffix.lower() in endings
        else:
            yield path, True
