"""All that a GPU is wanted for, in the order of its weight, within so many minutes: what `make gpu` runs.

    python benchmarks/gpu_session.py [--minutes 13] [--stages tests ...] [--results FOLDER] [--workers 8]
    python benchmarks/gpu_session.py --rehearse      # everything on tiny shapes, without a GPU

    tests       the kernels against the truth: named shapes, layers of networks, NaN and infinities, powers, bytes,
                training
    benchmark   gpu.py: layers, steps, cdist
    more-tests  random shapes, mixed precisions, streams, graphs, more than 2^31 elements, the tuner
    rivals      gpu.py: other ways to write a layer

Where a command may take less than that, ``--stages`` splits them: each call's minutes go to its own stages.
A stage that takes longer than its share is ended, and the next begins. A failed one does not keep the others from
running. ``FOLDER/gpu-session.json`` names each stage's end and seconds, and is written after each; ``gpu.json`` and
``gpu-rivals.json`` hold the figures, and each stage's output is in ``FOLDER/gpu-<stage>.log`` while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adder_zoo.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"tests": 0.3, "benchmark": 0.35, "more-tests": 0.2, "rivals": 0.15}
FIRST = "named_shapes or layers_of_networks or special_values or powers or bytes or fused or training"
GRACE = 10  # seconds for a stage to end by itself once it is asked to


@dataclass(frozen=True)
class Stage:
    """``share`` of the minutes goes to ``command``."""

    name: str
    share: float
    command: list[str]


def stages(results: Path, minutes: float, workers: int, rehearse: bool, names: Sequence[str]) -> list[Stage]:
    """Those of ``names``, which share the minutes."""
    tests = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "tests/ops/test_gpu.py"]
    tests += [] if rehearse else ["-n", str(workers)]
    times = [sys.executable, "benchmarks/gpu.py", *(["--rehearse"] if rehearse else []), "--parts"]
    commands = {
        "tests": [*tests, "-k", FIRST],
        "benchmark": [*times, "layers", "steps", "cdist", "--json", str(results / "gpu.json")],
        "more-tests": [*tests, "-k", f"not ({FIRST})"],
        "rivals": [*times, "rivals", "--json", str(results / "gpu-rivals.json")],
    }
    found = []
    for name in (name for name in SHARES if name in names):
        share = SHARES[name] / sum(SHARES[n] for n in names)
        end = ["--minutes", f"{0.8 * share * minutes:.2f}"] if "--json" in commands[name] else []  # of a benchmark
        found.append(Stage(name, share, commands[name] + end))
    return found


def run(wanted: list[Stage], minutes: float, results: Path, rehearse: bool = False) -> list[dict[str, object]]:
    """Runs the stages; what an early one leaves of its time goes to those after it.

    Returns:
        name, command, seconds and "end" of each: "done", "failed (status)" or "time over".
    """
    results.mkdir(parents=True, exist_ok=True)
    start, due, answer = time.monotonic(), 0.0, []
    for stage in wanted:
        due += 60 * minutes * stage.share
        begin = time.monotonic()
        left = max(1.0, due - (begin - start))
        log = results / f"gpu-{stage.name}.log"
        print(f"{stage.name}: at most {left:.0f} s, output in {log}", flush=True)
        end = _run(stage.command, log, left, rehearse)
        seconds = round(time.monotonic() - begin, 1)
        print(f"{stage.name}: {end}, {seconds:.0f} s", flush=True)
        answer.append({"stage": stage.name, "end": end, "seconds": seconds, "command": stage.command})
        write_text(results / "gpu-session.json", json.dumps(answer, indent=1) + "\n")
    return answer


def _run(command: list[str], log: Path, seconds: float, rehearse: bool) -> str:
    """Runs the command in a process group of its own, so that its workers end with it."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if rehearse:
        environment |= {"TRITON_INTERPRET": "1", "ADDER_ZOO_REHEARSE_GPU": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):  # workers that outlive the first process too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "time over"
    return f"failed ({status})" if status else "done"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=13.0)
    parser.add_argument("--stages", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--workers", type=int, default=8, help="processes of the tests")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes under Triton's interpreter")
    options = parser.parse_args()
    results = options.results.resolve()  # the stages run elsewhere
    wanted = stages(results, options.minutes, options.workers, options.rehearse, options.stages)
    answer = run(wanted, options.minutes, results, options.rehearse)
    sys.exit(0 if all(stage["end"] == "done" for stage in answer) else 1)


if __name__ == "__main__":
    main()
