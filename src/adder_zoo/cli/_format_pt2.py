"""``adder-zoo export --format pt2``: a program of ``torch.export``."""

from __future__ import annotations

from ._common import Failure
from ._formats import Format, Job, Written, fixed_batch


def write(job: Job, fixed_batch: int | None) -> Written:
    """Writes the program, reads it again and compares its answers."""
    from .. import pt2

    try:
        difference = pt2.export_program(job.network, job.output, job.input_size, fixed_batch=fixed_batch)
    except pt2.ProgramError as error:
        raise Failure(f"{job.model}: {error}") from error
    batch = f"batches of {fixed_batch}" if fixed_batch else "batches of any size"
    images = " x ".join(map(str, job.input_size))
    text = f"{job.output}: {batch}, images {images}; reloaded, logits differ by {difference:.2g}"
    return Written(text, {"bytes": job.output.stat().st_size, "largest_difference": difference})


FORMAT = Format("pt2", ".pt2", (fixed_batch,), write)
