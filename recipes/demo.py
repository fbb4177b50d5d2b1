"""The main job in three minutes, on the images that come with the repository and without a network: `make demo`.

Loads a bundled network, classifies real images with it, trains the same network from scratch through the real recipe,
and loads the result again with timm.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import mnist
import timm
import torch
from mnist import SAMPLE
from torch import Tensor, nn

import adder_zoo
from adder_zoo.datasets import DataError
from adder_zoo.datasets.idx import load
from adder_zoo.training import RecipeError, exit_with_message

RUN = Path("runs/demo")
SHOWN = 12  # images
EPOCHS = 60  # about a minute on two cores


@torch.no_grad()
def classify(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Most likely class and its probability, for uint8 images [N, 28, 28]."""
    probability, label = model.eval()(mnist.preprocessed(images, model)).softmax(1).max(1)
    return label, probability


def main() -> None:
    started = time.monotonic()
    for implementation in adder_zoo.implementations().values():
        state = "available" if implementation.available else "not here"
        print(f"  {implementation.name:12} {state:10} {implementation.detail}")

    images, labels = load("fashion_mnist", SAMPLE)[0]["test"]
    model = timm.create_model("adder_lenet5_bn.fashion_mnist", pretrained=True)
    names: list[str] = model.pretrained_cfg["label_names"]  # type: ignore[index,assignment]
    label, probability = classify(model, images)
    print("\nThe bundled network on bundled images it has never seen:\n")
    print("  image  predicted     certainty  truth")
    step = len(labels) // SHOWN
    for i in range(0, SHOWN * step, step):
        mark = "" if label[i] == labels[i] else "  <- wrong"
        print(f"  {i:5}  {names[label[i]]:12}  {probability[i]:9.1%}  {names[labels[i]]}{mark}")
    print(f"\n  right: {(label == labels).float().mean():.1%} of {len(labels)} images")

    print(f"\nThe same network from scratch, {EPOCHS} epochs on the bundled sample:\n", flush=True)
    if RUN.exists():
        shutil.rmtree(RUN)
    results = mnist.main(
        ["--dataset", "fashion_mnist", "--data-dir", "sample", "--epochs", str(EPOCHS), "--output-dir", str(RUN)]
    )
    print()
    for path in sorted(RUN.iterdir()):
        if path.is_file():
            print(f"  {path}: {path.stat().st_size:,} bytes")
    again = timm.create_model(f"local-dir:{RUN}", pretrained=True)
    accuracy = 100 * (classify(again, images)[0] == labels).float().mean().item()
    print(f"\n  timm.create_model('local-dir:{RUN}', pretrained=True): {accuracy:.2f} %, the recipe measured "
          f"{results['test_accuracy']:.2f} %")  # fmt: skip
    if abs(accuracy - results["test_accuracy"]) > 1e-3:
        raise RecipeError("the network that was loaded again is not the one that was trained")
    print(f"\nDone in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError) as error:
        exit_with_message(error)
