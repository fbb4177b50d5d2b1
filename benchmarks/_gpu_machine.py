"""What `gpu.py` measures with: a GPU, or a rehearsal on a CPU that runs the same code and whose times mean nothing."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

LANES = {8.0: 64, 9.0: 128, 10.0: 128, 8.6: 128, 8.9: 128, 12.0: 128}  # fp32 additions a clock and multiprocessor


class Gpu:
    """The first NVIDIA GPU, by CUDA events. Before each call a buffer larger than its L2 cache is overwritten."""

    device = "cuda"

    def __init__(self) -> None:
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device=self.device)

    def about(self) -> dict[str, Any]:
        name = torch.cuda.get_device_properties(0).name
        return {"device": name, "driver": smi("driver_version"), "cuda": torch.version.cuda}

    def milliseconds(self, name: str, call: Callable[[], Any]) -> float:
        self.flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def clock(self) -> float | None:
        """MHz of the multiprocessors now."""
        text = smi("clocks.sm")
        return float(text) if text else None

    def additions(self) -> int | None:
        """fp32 additions of the whole card in a clock, where it is known."""
        properties = torch.cuda.get_device_properties(0)
        lanes = LANES.get(float(f"{properties.major}.{properties.minor}"))
        return lanes and lanes * properties.multi_processor_count

    def free_memory(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def begin_memory(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> float:
        """MiB at most since ``begin_memory``."""
        return torch.cuda.max_memory_allocated() / 2**20

    def forget(self) -> None:
        torch.cuda.empty_cache()

    def compile(self, function: Callable) -> Callable:
        return torch.compile(function, dynamic=False)


class Rehearsal:
    """The same on a CPU, where Triton's interpreter runs the kernels."""

    device = "cpu"

    def __init__(self) -> None:
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise SystemExit("a rehearsal needs Triton's interpreter: set TRITON_INTERPRET=1")

    def about(self) -> dict[str, Any]:
        return {"device": "rehearsal: the times mean nothing"}

    def milliseconds(self, name: str, call: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)

    def clock(self) -> float | None:
        return None

    def additions(self) -> int | None:
        return None

    def free_memory(self) -> int:
        return 1 << 30

    def begin_memory(self) -> None:
        """A process cannot forget its own peak, and a rehearsal's figure means nothing."""

    def peak_memory(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def forget(self) -> None:
        """There is no cache of a GPU's memory here."""

    def compile(self, function: Callable) -> Callable:
        return torch.compile(function, dynamic=False, backend="eager")


Machine = Gpu | Rehearsal


def smi(what: str) -> str:
    """An entry of nvidia-smi; empty where it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def interleaved(machine: Machine, candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each candidate; they take turns. A rival that cannot run is named and left out."""
    times: dict[str, list[float]] = {}
    for name, call in candidates.items():
        try:
            call()
        except (RuntimeError, torch.OutOfMemoryError) as error:
            if "adder" in name:
                raise
            print(f"  {name} does not run: {str(error).splitlines()[0]}")
            machine.forget()
        else:
            times[name] = []
    for _ in range(repeats):
        for name, values in times.items():
            values.append(machine.milliseconds(name, candidates[name]))
    return {name: statistics.median(values) for name, values in times.items()}
