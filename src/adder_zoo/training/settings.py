"""Settings of the recipes: the same names in all of them, taken from timm's ``train.py`` and Accelerate's examples."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from ..functional import INPUT_GRADS, WEIGHT_GRADS
from ..models import SIMILARITIES
from ..optim import ADDER_LRS

ConfigT = TypeVar("ConfigT")


class RecipeError(Exception):
    """The run cannot go on; the message says why and what to do."""


def option(default: Any, help: str, choices: Sequence[Any] | None = None, run: bool = True, type: type | None = None):
    """A setting. ``run`` is False if it only says where and how fast a run computes. Such a setting may change when a
    stopped run goes on."""
    return field(default=default, metadata={"help": help, "choices": choices, "run": run, "type": type})


@dataclass(frozen=True)
class Settings:
    """The settings of all recipes. Each recipe sets its own defaults for its data, and says which are the paper's."""

    # ---- data
    data_dir: str | None = option(None, "folder of the data set", run=False, type=str)
    synthetic: bool = option(False, "noise instead of the data set, for timing; tested on 1,000 images of it")
    limit_batches: int = option(0, "use at most this many batches of each part of the data, for smoke runs; 0: all")
    workers: int = option(0, "processes that load images from files; 0: the training process itself", run=False)

    # ---- network
    model: str = option("", "a network of timm or of this zoo")
    similarity: str = option("adder", "conv, xnor: the paper's CNN and binary network", SIMILARITIES)
    convolutions: str = option(
        "",
        "layers that stay convolutions, of a network that leaves a choice: patterns of names with commas between them, "
        '"*.conv_dw" for a MobileNet\'s depthwise layers; "none": only those that always do; default: the network\'s',
    )
    pretrained: bool = option(False, "begin with trained weights")
    init: str = option("", "begin with these: a folder, a checkpoint, or a trained network's name with its tag")
    bits: int = option(
        0, "fine-tune the trained network that it begins with for adder layers of so many bits, 2 to 8; 0: float32"
    )
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
    momentum: float = option(0.9, "Nesterov's with AdderSGD")
    weight_decay: float = 5e-4
    adder_lr: str = option("adaptive", "of AdderSGD: ALR (Eq. 13), ILR or neither", ADDER_LRS)
    eta: float = option(0.2, "η of Eq. 13")
    factor: float = option(100.0, "of --adder-lr increased")
    gradient_accumulation_steps: int = option(1, "batches to one update")
    clip_grad: float = option(0.0, "largest norm of the gradient of all but adder filters; 0: no limit")
    max_steps: int = option(0, "stop after this many updates, and fit the schedule to them; 0: by epochs")

    # ---- regularisation
    smoothing: float = option(0.0, "label smoothing")
    mixup: float = option(0.0, "α of mixup; 0: none")
    cutmix: float = option(0.0, "α of CutMix; 0: none")
    model_ema: bool = option(False, "keep an average of the weights, too")
    model_ema_decay: float = 0.9998

    # ---- knowledge transfer
    distillation: str = option(
        "none",
        "pkkd: a convolutional twin learns alongside and teaches; trained: the network that --teacher names; float: "
        "with --bits, the network that it begins with",
        ("none", "pkkd", "trained", "float"),
    )
    teacher: str = option("", "of --distillation trained: a folder, or a trained network's name")
    # Ours: the notation is the paper's (arXiv 2009.13044), the values are not from there.
    kd_alpha: float = option(0.5, "weight of the labels beside the teacher's answers")
    kd_beta: float = option(1.0, "PKKD: weight of the layers' kernels")
    kd_temperature: float = option(1.0, "by which the logits of a trained teacher and of the student are divided")
    l2_to_l1: int = option(
        0,
        "epochs in which the exponent of |x - w| falls from 2 to 1; between the first and the last of them a step "
        "takes many times as long; 0: the exponent is 1",
    )

    # ---- evaluation and record
    eval_every: int = option(1, "epochs between evaluations; the last one is always evaluated")
    bn_batches: int = option(20, "training batches to recompute batch norm statistics over")
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
        if (self.distillation == "trained") != bool(self.teacher):
            raise RecipeError("--distillation trained and --teacher belong together: give both, or neither")
        if not self.kd_temperature > 0:
            raise RecipeError(f"--kd-temperature must be above 0, got {self.kd_temperature}")
        if self.init and self.pretrained:
            raise RecipeError("--init names the weights to begin with: leave --pretrained out")
        self._check_bits()

    def _check_bits(self) -> None:
        if self.bits == 0:
            if self.distillation == "float":
                raise RecipeError(
                    "--distillation float: the float network teaches one of few bits; give --bits as well"
                )
            return
        if self.bits not in range(2, 9):
            raise RecipeError(f"--bits must be 0 or from 2 to 8, got {self.bits}")
        if not (self.init or self.pretrained):
            raise RecipeError("--bits fine-tunes a trained float network: name it by --init, or give --pretrained")
        if self.similarity != "adder":
            raise RecipeError("--bits is for adder layers: leave --similarity at adder")
        if self.l2_to_l1:
            raise RecipeError("--bits: bytes have no exponent between 1 and 2; leave --l2-to-l1 out")

    def record(self) -> dict[str, Any]:
        """The settings that make the run what it is, by name."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.metadata.get("run", True)}


def parse_settings(config: type[ConfigT], description: str | None, argv: Sequence[str] | None = None) -> ConfigT:
    """Settings from flags over ``--config FILE.yaml`` over the defaults of the dataclass ``config``.

    A field's metadata may give ``help`` and ``choices``; ``field_name`` becomes ``--field-name``. A file is read as if
    its settings had been flags, so the same rules hold for both.

    Args:
        config: A dataclass; its fields are the settings.
        description: Its first line is what ``--help`` begins with.
        argv: The flags; default: from the command line.

    Raises:
        SystemExit: a setting is unknown or has no meaning; a message is printed.
    """
    description = (description or "").partition("\n")[0]
    parser = _parser(config, description)
    path = parser.parse_known_args(argv)[0].config
    from_file = None
    if path:
        file_parser = _parser(config, description, prog=f"{parser.prog}: --config {path}")
        from_file = file_parser.parse_args(_words_of_file(config, Path(path), file_parser))
    chosen = vars(parser.parse_args(argv, from_file))
    chosen.pop("config")
    return config(**chosen)


def _parser(config: Any, description: str, prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings by name; flags override it")
    for setting in dataclasses.fields(config):
        flag = "--" + setting.name.replace("_", "-")
        options: dict[str, Any] = {"default": setting.default, "help": setting.metadata.get("help", " ")}
        if isinstance(setting.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            kind = setting.metadata.get("type") or type(setting.default)
            parser.add_argument(flag, type=kind, choices=setting.metadata.get("choices"), **options)
    return parser


def _words_of_file(config: Any, path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The settings of a YAML file as flags."""
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(str(error))
    if not isinstance(settings, dict):
        parser.error("expected settings by name")
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        parser.error(f"unknown settings {', '.join(unknown)}; known are {', '.join(defaults)}")
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool) != isinstance(defaults[name], bool):
            parser.error(f"{name} must be a {type(defaults[name]).__name__}, got {value!r}")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            if isinstance(value, float) and isinstance(defaults[name], int) and value.is_integer():
                value = int(value)  # 2.0 is a number of epochs, too
            words.append(f"--{flag}={value}")
    return words


def exit_with_message(error: BaseException) -> NoReturn:
    """Ends the program with the error's message instead of a traceback."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1)
