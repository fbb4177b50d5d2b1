"""``adder-zoo export --format onnx``: a file for ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..results import ResultsError, read_results
from ._common import Failure, config_of
from ._formats import Format, Job, Written, fixed_batch

opset = click.Option(["--opset"], type=click.IntRange(min=18), default=18, show_default=True, help="Version of ONNX.")


def write(job: Job, fixed_batch: int | None, opset: int) -> Written:
    """Writes the file, runs it in ONNX Runtime and compares its answers."""
    from .. import onnx

    try:
        difference = onnx.export_onnx(
            job.network, job.output, job.input_size, fixed_batch=fixed_batch, opset=opset, metadata=_measured(job),
            force=True,
        )  # fmt: skip
    except (ImportError, ValueError, onnx.OnnxError) as error:
        raise Failure(f"{job.model}: {error}") from error
    batch = f"batches of {fixed_batch}" if fixed_batch else "batches of any size"
    images = " x ".join(map(str, job.input_size))
    text = f"{job.output}: {batch}, images {images}; run by ONNX Runtime, logits differ by {difference:.2g}"
    return Written(text, {"bytes": job.output.stat().st_size, "largest_difference": difference})


def _measured(job: Job) -> dict[str, str]:
    """The accuracy that was measured of the network's weights, and where they are from, for the file's metadata."""
    said = {"source": job.model}
    weights = config_of(job.network).get("file")
    try:
        results = read_results(Path(weights).parent) if weights else None
    except ResultsError as error:
        raise Failure(str(error)) from error
    if results:
        kept = ("dataset", "test_images", "test_accuracy")
        said["results"] = json.dumps({key: results[key] for key in kept if key in results})
    return said


FORMAT = Format("onnx", ".onnx", (fixed_batch, opset), write)
