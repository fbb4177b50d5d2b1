"""What fewer bits cost: test accuracy of a trained adder network in float32 and after ``adder_zoo.quantize``.

    python recipes/paper/quantization.py --model adder_resnet20.cifar10 --data-dir FOLDER

MODEL is a trained network of the zoo, or ``local-dir:FOLDER`` (the authors' checkpoint, once ``adder-zoo import`` has
read it). The ranges come from training images, which are drawn with a fixed seed; the whole test set is scored. The
report keeps the networks that it has from earlier calls.

    python recipes/paper/quantization.py --model adder_resnet20.cifar10 --fine-tuned runs/resnet20-4bit

adds the results of finished runs of recipes/cifar.py or mnist.py with --bits that began with this network.
"""

import argparse
import json
import sys
from pathlib import Path

import timm
import torch
from _runs import arguments, write
from timm.data import resolve_data_config
from torch import Tensor, nn

import adder_zoo
from adder_zoo.datasets import cifar, idx

TUNED = (
    "Fine-tuned: trained on with the rounding in the forward pass, by `recipes/cifar.py --bits`; read from these "
    "runs by `--fine-tuned RUN`."
)


def images_of(dataset: str, data_dir: str | None, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Both parts of the data set: images [N, C, H, W] uint8 in the size that the network takes, and labels."""
    if dataset in cifar.CLASSES:
        return cifar.load(dataset, cifar.find(dataset, data_dir))
    size = resolve_data_config(model=model)["input_size"][-1]
    splits, _ = idx.load(dataset, idx.find(dataset, data_dir))
    return {part: (idx.resize(images, size).unsqueeze(1), labels) for part, (images, labels) in splits.items()}


def normalised(images: Tensor, model: nn.Module) -> Tensor:
    config = resolve_data_config(model=model)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network: nn.Module, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    right = 0
    for batch, wanted in zip(images.split(250), labels.split(250), strict=True):
        right += int((network(normalised(batch, model)).argmax(1) == wanted).sum())
    return round(100 * right / len(labels), 2)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", default="adder_resnet20.cifar10", help="a trained network")
    parser.add_argument("--name", help="what the report calls it; default: MODEL")
    parser.add_argument("--dataset", choices=(*cifar.CLASSES, "mnist", "fashion_mnist"), default="cifar10")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4])
    parser.add_argument("--images", type=int, default=512, help="training images that the ranges are chosen by")
    parser.add_argument("--fine-tuned", nargs="+", metavar="RUN", help="only add these runs of a recipe with --bits")
    args = parser.parse_args()

    found = Path(args.report_dir) / "quantization.json"
    record = json.loads(found.read_text()) if found.exists() else {}
    name = args.name or args.model
    if args.fine_tuned:
        if name not in record:
            parser.error(f"the report has no {name}; score it first, without --fine-tuned")
        for run in args.fine_tuned:
            record[name].setdefault("fine_tuned", {}).update(fine_tuned(Path(run), record[name]))
    else:
        record[name] = {**scored(args), **{k: v for k, v in record.get(name, {}).items() if k == "fine_tuned"}}
    report(args.report_dir, record)


def fine_tuned(run: Path, row: dict) -> dict:
    """What a finished run says, by its bits."""
    try:
        results = json.loads((run / "results.json").read_text())
        accuracy, config = results["quantized_test_accuracy"], results["config"]
    except (OSError, KeyError) as error:
        sys.exit(f"{run} holds no finished run with --bits ({error})")
    if (results["dataset"], results["test_images"]) != (row["dataset"], row["test_images"]):
        sys.exit(
            f"{run} was tested on {results['test_images']} images of {results['dataset']}, not as the report's row"
        )
    row = {
        "accuracy": round(accuracy, 2),
        "with_float32_sums": round(results["test_accuracy"], 2),
        "epochs": results["epochs"],
        "init": Path(config["init"]).name,
    }
    return {str(config["bits"]): row}


def scored(args: argparse.Namespace) -> dict:
    """The network in float32 and with fewer bits, without training."""
    model = timm.create_model(args.model, pretrained=True).eval()
    splits = images_of(args.dataset, args.data_dir, model)
    train, _ = splits["train"]
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: args.images]
    result = {"dataset": args.dataset, "images": args.images, "test_images": len(splits["test"][1])}
    result["float"] = accuracy(adder_zoo.fuse(model), model, *splits["test"])
    for bits in args.bits:
        network = adder_zoo.quantize(model, normalised(train[drawn], model), bits=bits, images=args.images)
        result[str(bits)] = accuracy(network, model, *splits["test"])
        print(f"{bits} bits: {result[str(bits)]} %", flush=True)
    return result


def report(folder: str, record: dict) -> None:
    bits = sorted({int(b) for result in record.values() for b in result if b.isdigit()}, reverse=True)
    tuned = sorted({int(b) for result in record.values() for b in result.get("fine_tuned", {})}, reverse=True)
    columns = [f"{b} bits" for b in bits] + [f"{b} bits, fine-tuned" for b in tuned]
    lines = [
        "# Accuracy with fewer bits",
        "",
        "Test accuracy in percent on the whole test set, after `adder_zoo.quantize` and without any training. Adder "
        "layers compute with integers, fully connected ones too, the rest in float32. "
        "`python recipes/paper/quantization.py --model MODEL`",
        *(["", TUNED] if tuned else []),
        "",
        "| network | data | float32 | " + " | ".join(columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for name, result in record.items():
        after = {b: run["accuracy"] for b, run in result.get("fine_tuned", {}).items()}
        scores = [result.get(str(b)) for b in bits] + [after.get(str(b)) for b in tuned]
        cells = " | ".join("" if score is None else f"{score:.2f}" for score in scores)
        lines.append(f"| {name} | {result['dataset']} | {result['float']:.2f} | {cells} |")
    write(folder, "quantization", record, lines)


if __name__ == "__main__":
    main()
