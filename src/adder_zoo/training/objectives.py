"""What a recipe minimises: plain supervision, answers of a trained teacher, or PKKD, whose teacher learns alongside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from ..functional import adder2d
from ..layers import Adder2d, AdderLayer
from .settings import RecipeError, Settings


class Supervised(nn.Module):
    """Cross-entropy of a network's answers.

    Called with images alone it gives the logits; with targets, [N] classes or [N, classes] probabilities, the loss and
    the logits. Loss and network are one module, so that a distributed wrapper sees all of a step in one call.
    """

    def __init__(self, model: nn.Module, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.smoothing = smoothing

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.model(images)
        if targets is None:
            return logits
        return cross_entropy(logits, targets, self.smoothing), logits


class Distilled(Supervised):
    """Cross-entropy of a network's answers with the labels, and with a trained teacher's answers; it stays as it is.

        L = α CE(student, labels) + (1 - α) T² CE(student / T, teacher / T)        (arXiv 1503.02531)

    "Student" and "teacher" are logits here. T² keeps the gradient of the second term as large as at T = 1.

    Args:
        model: The student.
        teacher: In eval mode; ``adder_zoo.fuse`` makes an adder network quick.
        alpha: As above.
        temperature: T. Above 1, the teacher's answers also tell how similar the wrong classes are.
        smoothing: Of the labels.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, alpha: float, temperature: float = 1.0, smoothing: float = 0.0
    ) -> None:
        super().__init__(model, smoothing)
        self.teacher = teacher.requires_grad_(False)
        self.alpha = alpha
        self.temperature = temperature

    def train(self, mode: bool = True) -> Distilled:
        self.training = mode
        self.model.train(mode)
        return self

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Any:
        if targets is None:
            return self.model(images)
        loss, logits = super().forward(images, targets)
        with torch.no_grad():
            answers = self._softened(self.teacher(images)).softmax(1)
        taught = self.temperature**2 * F.cross_entropy(self._softened(logits), answers)
        return self.alpha * loss + (1 - self.alpha) * taught, logits

    def _softened(self, logits: Tensor) -> Tensor:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature


class PKKD(nn.Module):
    """Kernel-based progressive distillation (arXiv 2009.13044).

    The student's adder layers answer with distances, the teacher's convolutions with products: they are compared where
    both are similarities between 0 and 1, by the kernels that fit the distributions of the two kinds of weights::

        h_m = exp(-‖x - w‖₁ / 2σ²)      Laplacian, of the student's layer m; -‖x - w‖₁ is its output
        g_m = exp(-‖x - w‖₂² / 2σ²)     Gaussian, of the teacher's layer m
        L   = β Σ_m MSE(ρ(h_m), ρ'(g_m)) + α CE(student, labels) + (1 - α) CE(student, teacher's answers)
              + CE(teacher, labels)

    ρ and ρ' are learned 1x1 convolutions, one of each for every layer. What is ours: 2σ² is the running mean of the
    distances, for each layer, so that the exponents stay near -1; and a batch norm without parameters follows ρ, as
    the two could agree on zero without it. The teacher gets a gradient from its own labels alone.

    Args:
        model: The student; its ``Adder2d`` layers without bias are compared.
        teacher: Has convolutions under the same names.
        alpha, beta: As above.
        smoothing: Of the labels.
    """

    MOMENTUM = 0.1
    bandwidths: Tensor

    def __init__(self, model: nn.Module, teacher: nn.Module, alpha: float, beta: float, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.alpha = alpha
        self.beta = beta
        self.smoothing = smoothing
        self.pairs: list[tuple[str, Any, Any]] = [
            (name, layer, teacher.get_submodule(name))
            for name, layer in model.named_modules()
            if type(layer) is Adder2d and layer.bias is None
        ]
        if not self.pairs:
            raise RecipeError("--distillation pkkd: the network has no adder layers without bias")
        self.student_maps = nn.ModuleList(_map(layer.out_channels) for _, layer, _ in self.pairs)
        self.teacher_maps = nn.ModuleList(_map(layer.out_channels) for _, layer, _ in self.pairs)
        # 2σ² of student and teacher; 0 until the first batch
        self.register_buffer("bandwidths", torch.zeros(len(self.pairs), 2))
        self._distances: dict[tuple[int, int], Tensor] = {}  # ‖x - w‖ of this step by (layer, student or teacher)
        for i, (_, student_layer, teacher_layer) in enumerate(self.pairs):
            student_layer.register_forward_hook(self._student_hook(i))
            teacher_layer.register_forward_hook(self._teacher_hook(i))

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Any:
        if targets is None:
            return self.model(images)
        logits = self.model(images)
        answers = self.teacher(images)
        blended = self.alpha * cross_entropy(logits, targets, self.smoothing)
        blended = blended + (1 - self.alpha) * F.cross_entropy(logits, answers.detach().float().softmax(1))
        loss = self.beta * self._between_layers() + blended + cross_entropy(answers, targets, self.smoothing)
        return loss, logits

    def _between_layers(self) -> Tensor:
        loss = torch.zeros((), device=self.bandwidths.device)
        for i in range(len(self.pairs)):
            kernels = [self._kernel(i, which) for which in (0, 1)]
            loss = loss + F.mse_loss(self.student_maps[i](kernels[0]), self.teacher_maps[i](kernels[1]))
        self._distances.clear()
        return loss

    def _kernel(self, i: int, which: int) -> Tensor:
        distances = self._distances[i, which]
        mean = distances.detach().mean()
        before = self.bandwidths[i, which]
        bandwidth = torch.where(before > 0, before.lerp(mean, self.MOMENTUM), mean)
        self.bandwidths[i, which] = bandwidth
        return torch.exp(-distances / bandwidth.clamp_min(torch.finfo(bandwidth.dtype).tiny))

    def _student_hook(self, i: int) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled() and self.training:
                self._distances[i, 0] = -_at_least_float32(output)

        return hook

    def _teacher_hook(self, i: int) -> Any:
        @torch.no_grad()
        def hook(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.training:
                x = _at_least_float32(inputs[0])
                padding: Any = layer.padding
                if isinstance(layer, Conv2dSame):
                    x, padding = pad_same(x, layer.kernel_size, layer.stride, layer.dilation), 0  # type: ignore[arg-type]
                options = (layer.stride, padding, layer.dilation, layer.groups)
                self._distances[i, 1] = -adder2d(x, layer.weight.to(x.dtype), None, *options, p=2.0)

        return hook


def _at_least_float32(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _map(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False))


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    # Soft targets, of mixup, are smooth already.
    return F.cross_entropy(logits, targets, label_smoothing=smoothing if targets.dim() == 1 else 0.0)


def make_objective(config: Settings, model: nn.Module, teacher: nn.Module | None) -> Supervised | PKKD:
    if config.distillation in ("trained", "float"):
        assert teacher is not None
        return Distilled(model, teacher, config.kd_alpha, config.kd_temperature, config.smoothing)
    if config.distillation == "pkkd":
        assert teacher is not None
        return PKKD(model, teacher, config.kd_alpha, config.kd_beta, config.smoothing)
    return Supervised(model, config.smoothing)


def exponent(epoch: int, over: int) -> float:
    """p of ``|x - w|^p`` in an epoch, counted from 0: from 2 to 1 in equal steps, over so many (arXiv 2105.14202).

    At p = 2 an adder layer is a convolution and two norms, which trains like one.
    """
    return 1.0 if over <= epoch + 1 else 2.0 - epoch / (over - 1)


def set_exponent(model: nn.Module, p: float) -> None:
    for layer in model.modules():
        if isinstance(layer, AdderLayer):
            layer.p = p
