"""The start of a run: Accelerate's device and processes, what the launcher was asked for, and the tracker."""

from __future__ import annotations

import os
from pathlib import Path

import accelerate
import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DataLoaderConfiguration

from .settings import RecipeError, Settings

DEFAULT_TRACKER = "tensorboard"


def make_accelerator(config: Settings) -> Accelerator:
    """The ``Accelerator`` of a run, which shuffles the same way on every machine.

    Raises:
        RecipeError: the launcher started other processes than this one knows of, or a tracker is not installed.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    accelerator = Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision or None,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
        step_scheduler_with_optimizer=False,
        log_with=choose_tracker(config.report_to),
        project_dir=config.output_dir,
    )
    wanted = int(os.environ.get("WORLD_SIZE", 0)) or requested_processes()
    if accelerator.num_processes != wanted:
        raise RecipeError(
            f"the launcher was to start {wanted} processes, but this one knows of {accelerator.num_processes}: "
            "each would train on its own, or fewer than you think. For several processes on CPUs use `torchrun "
            "--nproc-per-node N` with --cpu, or "
            "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N`."
        )
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision == "fp16":
            raise RecipeError("fp16 is for GPUs: on a CPU leave --mixed-precision, or take bf16")
        # The launcher's own default is one thread, which leaves a laptop idle.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(config.threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    return accelerator


def requested_processes() -> int:
    """How many processes ``accelerate launch`` is to start, if it is the parent of this process; else 1.

    Without a GPU it starts a single process whatever ``--num_processes`` says, and leaves no trace of the number.
    """
    words = launcher_arguments()
    if words is None:
        return 1
    args, _ = launch_command_parser().parse_known_args(words)
    if args.num_processes:
        return args.num_processes
    file = args.config_file or (default_config_file if Path(default_config_file).is_file() else None)
    return load_config_from_file(file).num_processes if file else 1


def launcher_arguments() -> list[str] | None:
    """What follows ``accelerate launch``, by any of its names, in this process's parent; None if it is another."""
    parent = psutil.Process().parent()
    command = parent.cmdline() if parent else []
    for i, word in enumerate(command):
        path = Path(word)
        if path.stem == "accelerate-launch" or word == "accelerate.commands.launch":
            return command[i + 1 :]
        if path.name == "launch.py" and path.parent.name == "commands":
            return command[i + 1 :]
        if word == "launch" and any("accelerate" in before for before in command[:i]):
            return command[i + 1 :]
    return None


def choose_tracker(name: str) -> str | None:
    """The tracker that ``--report-to`` names. Only the default may be missing without an error.

    Raises:
        RecipeError: Accelerate does not know it, or it is not installed.
    """
    known = {t.value for t in accelerate.utils.LoggerType} - {"all"}
    here = {t.value if hasattr(t, "value") else str(t) for t in accelerate.tracking.get_available_trackers()}
    if name == "auto":
        return DEFAULT_TRACKER if DEFAULT_TRACKER in here else None
    if name == "none":
        return None
    if name not in known:
        raise RecipeError(f"--report-to {name}: Accelerate knows {', '.join(sorted(known))}")
    if name not in here:
        raise RecipeError(f"--report-to {name}: it is not installed; `pip install {name}`, or --report-to none")
    return name
