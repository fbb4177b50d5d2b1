"""Settings of the recipes: the same names in all of them, those of timm's ``train.py`` and Accelerate's examples."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from adder_zoo.functional import INPUT_GRADS, WEIGHT_GRADS
from adder_zoo.models import SIMILARITIES
from adder_zoo.optim import ADDER_LRS

ConfigT = TypeVar("ConfigT")


class RecipeError(Exception):
    """The run cannot go on; the message says why and what to do."""


def option(default: Any, help: str, choices: Sequence[Any] | None = None, run: bool = True, type: type | None = None):
    """A setting. ``run`` is False where it says only where and how fast a run computes: it may change on the way."""
    return field(default=default, metadata={"help": help, "choices": choices, "run": run, "type": type})


@dataclass(frozen=True)
class Settings:
    """What all recipes can be told. Each sets the paper's values for its data, and names their source."""

    # ---- data
    data_dir: str | None = option(None, "folder of the data set", run=False, type=str)
    synthetic: bool = option(False, "noise in place of the data set, for timing")
    limit_batches: int = option(0, "use no more batches than so many of each part of the data, for smoke runs; 0: all")
    workers: int = option(0, "processes that load images from files; 0: the training process itself", run=False)

    # ---- network
    model: str = option("", "a network of timm or of this zoo")
    similarity: str = option("adder", "conv, xnor: the paper's CNN and binary network", SIMILARITIES)
    pretrained: bool = option(False, "begin with trained weights")
    drop_path: float = option(0.0, "rate of stochastic depth, where the network has it")
    weight_grad: str = option("full", "gradient of the filters: Eq. 5 or Eq. 4 of the paper", WEIGHT_GRADS)
    input_grad: str = option("clipped", "gradient of the input: Eq. 6, or another", INPUT_GRADS)

    # ---- optimizer and schedule
    epochs: int = 1
    batch_size: int = option(256, "for each process and accumulation step")
    opt: str = option("addersgd", "AdderSGD (Nesterov's momentum), or an optimizer of timm by its name")
    lr: float = 0.1
    sched: str = option("cosine", "decay of the learning rate, to zero", ("cosine", "poly"))
    poly_power: float = option(1.0, "of --sched poly")
    warmup_epochs: float = option(0.0, "epochs in which the learning rate grows from zero")
    momentum: float = 0.9
    weight_decay: float = 5e-4
    adder_lr: str = option("adaptive", "of AdderSGD: ALR (Eq. 13), ILR or neither", ADDER_LRS)
    eta: float = option(0.2, "η of Eq. 13")
    factor: float = option(100.0, "of --adder-lr increased")
    gradient_accumulation_steps: int = option(1, "batches to one update")
    clip_grad: float = option(0.0, "largest norm of the gradient of all but adder filters; 0: no limit")
    max_steps: int = option(0, "stop after so many updates, schedule included; 0: by epochs")

    # ---- regularisation
    smoothing: float = option(0.0, "label smoothing")
    mixup: float = option(0.0, "α of mixup; 0: none")
    cutmix: float = option(0.0, "α of CutMix; 0: none")
    model_ema: bool = option(False, "keep an average of the weights, too")
    model_ema_decay: float = 0.9998

    # ---- knowledge transfer
    distillation: str = option("none", "pkkd: a convolutional twin learns alongside and teaches", ("none", "pkkd"))
    # Ours: the notation is the paper's (arXiv 2009.13044), the values are not from there.
    kd_alpha: float = option(0.5, "PKKD: weight of the labels beside the teacher's answers")
    kd_beta: float = option(1.0, "PKKD: weight of the layers' kernels")
    l2_to_l1: int = option(
        0,
        "epochs in which the exponent of |x - w| falls from 2 to 1, all but the first and the last by the slow "
        "reference code; 0: it is 1",
    )

    # ---- evaluation and record
    eval_every: int = option(1, "evaluate after every so many epochs, and after the last")
    bn_batches: int = option(20, "training batches to take batch norm statistics over")
    checkpointing_steps: int = option(0, "updates between checkpoints, beside those after each epoch", run=False)
    checkpoint_hist: int = option(2, "checkpoints to keep", run=False)
    report_to: str = option(
        "auto",
        "tracker of Accelerate (tensorboard, wandb, ...); auto: TensorBoard if installed; none",
        run=False,
    )
    output_dir: str = option("runs/run", "the run's folder; a run in it is taken up", run=False)
    seed: int = 0

    # ---- device
    mixed_precision: str = option("", "default: as the launcher says", ("", "no", "fp16", "bf16"))
    channels_last: bool = option(True, "the layout that the kernels like best")
    compile: bool = option(False, "torch.compile the network")
    sync_bn: bool = option(False, "batch norm over all processes (GPUs only)")
    deterministic: bool = option(False, "only deterministic kernels on a GPU (on a CPU they always are)")
    cpu: bool = option(False, "train on the CPU even where there is a GPU", run=False)
    threads: int = option(0, "CPU threads for each process; 0: all cores", run=False)

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "bn_batches",
            "eval_every",
            "gradient_accumulation_steps",
            "checkpoint_hist",
        ):
            if getattr(self, name) < 1:
                raise RecipeError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in (
            *("lr", "warmup_epochs", "max_steps", "limit_batches", "workers", "clip_grad", "l2_to_l1", "eta", "seed"),
            *("weight_decay", "factor", "mixup", "cutmix", "kd_beta", "threads", "checkpointing_steps", "poly_power"),
        ):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        for name in ("smoothing", "drop_path", "kd_alpha", "model_ema_decay", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"--{name.replace('_', '-')} must lie between 0 and 1, got {getattr(self, name)}")
        if self.l2_to_l1 == 1:
            raise RecipeError("--l2-to-l1 must be 0 or at least 2: from 2 to 1 there are two epochs")
        if self.distillation != "none" and self.similarity != "adder":
            raise RecipeError("--distillation teaches adder networks: leave --similarity at adder")

    def record(self) -> dict[str, Any]:
        """The settings that make the run what it is, by name."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.metadata.get("run", True)}


def parse(config: type[ConfigT], description: str, argv: Sequence[str] | None = None) -> ConfigT:
    """Settings from flags over ``--config FILE.yaml`` over the defaults of the dataclass ``config``.

    A field's metadata may give ``help`` and ``choices``; ``field_name`` becomes ``--field-name``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings by name; flags override it")
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name, setting in fields.items():
        flag = "--" + name.replace("_", "-")
        options: dict[str, Any] = {"default": setting.default, "help": setting.metadata.get("help", " ")}
        if isinstance(setting.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            kind = setting.metadata.get("type") or type(setting.default)
            parser.add_argument(flag, type=kind, choices=setting.metadata.get("choices"), **options)
    path = parser.parse_known_args(argv)[0].config
    if path:
        try:
            settings = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            parser.error(f"--config {path}: {error}")
        if not isinstance(settings, dict):
            parser.error(f"--config {path}: expected settings by name")
        settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
        unknown = sorted(set(settings) - set(fields))
        if unknown:
            parser.error(f"--config {path}: unknown settings {', '.join(unknown)}; known are {', '.join(fields)}")
        for name, value in settings.items():
            default = fields[name].default
            if isinstance(default, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
                with contextlib.suppress(ValueError):  # YAML reads 5e-4 as text
                    settings[name] = value = float(value)
            if isinstance(default, int) and isinstance(value, float) and value.is_integer():
                settings[name] = value = int(value)  # 2.0 is a number of epochs, too
            if default is not None and not isinstance(value, type(default)):
                parser.error(f"--config {path}: {name} must be a {type(default).__name__}, got {value!r}")
            choices = fields[name].metadata.get("choices")
            if choices and value not in choices:  # argparse looks at flags only
                parser.error(f"--config {path}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        parser.set_defaults(**settings)
    chosen = vars(parser.parse_args(argv))
    chosen.pop("config")
    return config(**chosen)


def fail(error: BaseException) -> int:
    """Prints a message instead of a traceback; the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return 1
