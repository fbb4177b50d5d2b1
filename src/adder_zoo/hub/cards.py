"""Model cards: rendered from ``results.json`` and ``config.json`` by ``card.md``, never typed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..report import Count, report
from .records import trained_alike

TAG = "addernet"  # what all repositories of adder networks are tagged with
HUB = "https://huggingface.co"
TEMPLATE = Path(__file__).with_name("card.md")

# What a data set is called, its name on the Hub, and the recipe that trains on it.
DATASETS: dict[str, tuple[str, str, str | None]] = {
    "mnist": ("MNIST", "ylecun/mnist", "recipes/mnist.py"),
    "fashion_mnist": ("Fashion-MNIST", "zalando-datasets/fashion_mnist", "recipes/mnist.py"),
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10", "recipes/cifar.py"),
    "cifar100": ("CIFAR-100", "uoft-cs/cifar100", "recipes/cifar.py"),
    "imagenet": ("ImageNet-1k", "ILSVRC/imagenet-1k", "recipes/imagenet.py"),
}

def counts(folder: Path, similarity: str | None = None) -> tuple[Count, int]:
    """Operations for one image, and parameters, of the network that is saved in ``folder``, or of its twin."""
    options: dict[str, Any] = {"similarity": similarity} if similarity else {}
    with torch.device("meta"):
        counted = report(timm.create_model(f"local-dir:{folder}", **options))
    return counted.weighted, counted.parameters


def headline(folder: Path, results: Mapping[str, Any] | None) -> str:
    """One line about a network: the message of the commit that pushes it."""
    name = _name(json.loads((folder / "config.json").read_text()), results)
    if results is None:
        return f"Add {name}"
    return f"{name}: {_percent(results['test_accuracy'])} % on {_dataset(results)[0]}"


def render(
    folder: Path, repo_id: str, results: Mapping[str, Any] | None = None, twin: Mapping[str, Any] | None = None
) -> str:
    """The card of the network in ``folder``.

    Args:
        folder: Holds ``config.json``.
        repo_id: Where it goes on the Hub, "organisation/name".
        results: What ``results.json`` of its training holds; without it the card tells operations and energy only.
        twin: ``results.json`` of its convolutional twin.

    Raises:
        ValueError: ``twin`` is another network's, or was trained otherwise.
    """
    config = json.loads((folder / "config.json").read_text())
    cfg = config["pretrained_cfg"]
    similarity = config.get("model_args", {}).get("similarity", "conv")
    if twin is not None and (results is None or not trained_alike(results, twin)):
        raise ValueError(f"{repo_id}: the twin was not trained alike: it needs the same model, data and settings")
    columns = [(*counts(folder), results)]
    if similarity == "adder":
        columns.append((*counts(folder, "conv"), twin))
    name = _name(config, results)
    channels, height, width = cfg["input_size"]
    dataset, _, recipe = _dataset(results)
    card = ModelCard.from_template(
        _metadata(name, repo_id, similarity, cfg, results),
        template_path=str(TEMPLATE),
        model=name,
        repo_id=repo_id,
        similarity=similarity,
        results=results,
        twin=twin,
        accuracy=_percent(results["test_accuracy"]) if results else None,
        twin_accuracy=_percent(twin["test_accuracy"]) if twin else None,
        running=_percent(results.get("test_accuracy_running_statistics")) if results else None,
        dataset=dataset,
        mode="L" if channels == 1 else "RGB",
        labels=cfg.get("label_names"),
        columns=len(columns),
        table=_table(columns),
        input_size=f"{channels} x {height} x {width}",
        command=recipe and f"accelerate launch {recipe} --config args.yaml --data-dir FOLDER --output-dir runs/{name}",
        settings=list(results["config"].items()) if results else [],
        seconds=f"{results['training_seconds']:,.0f}" if results else None,
        environment=results["environment"] if results else None,
        license={"apache-2.0": "Apache-2.0"}.get(cfg.get("license"), cfg.get("license") or "Apache-2.0"),
    )
    return card.content + "\n"


def _metadata(
    name: str, repo_id: str, similarity: str, cfg: Mapping[str, Any], results: Mapping[str, Any] | None
) -> ModelCardData:
    title, dataset_id, _ = _dataset(results)
    evaluation = None
    if results is not None:
        sample = "" if results.get("data") == "full" else f" (sample of {results['test_images']} images)"
        evaluation = [
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=dataset_id,
                dataset_name=f"{title}{sample}",
                dataset_split="test",
                metric_type="accuracy",
                metric_name="Top-1 accuracy (%)",
                metric_value=results["test_accuracy"],
                source_name="results.json of the training",
                source_url=f"{HUB}/{repo_id}/blob/main/results.json",
            )
        ]
    return ModelCardData(
        license=cfg.get("license") or "apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", TAG, *([f"similarity-{similarity}"] if similarity != "adder" else [])],
        datasets=[dataset_id] if results else None,
        metrics=["accuracy"] if results else None,
        model_name=name if results else None,
        eval_results=evaluation,
    )


def _table(columns: Sequence[tuple[Count, int, Mapping[str, Any] | None]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if any(results for *_, results in columns):
        found = (f"{_percent(r['test_accuracy'])} %" if r else "not trained yet" for *_, r in columns)
        rows.append(("top-1 accuracy", *found))
    rows.append(("parameters", *(f"{parameters:,}" for _, parameters, _ in columns)))
    for what in ("multiplications", "additions", "xnors"):
        numbers = [getattr(count, what) for count, _, _ in columns]
        if any(numbers) or what != "xnors":
            rows.append((what.replace("xnors", "XNORs"), *(f"{number:,}" for number in numbers)))
    for label, precision in (("energy, fp32", ("fp32",)), ("energy, int8 with int32 sums", ("int8", "int32"))):
        rows.append((label, *(f"{count.energy(*precision):,.2f} µJ" for count, _, _ in columns)))
    return rows


def _name(config: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    if results:
        return str(results["model"])
    tag = config["pretrained_cfg"].get("tag")
    return f"{config['architecture']}.{tag}" if tag else config["architecture"]


def _dataset(results: Mapping[str, Any] | None) -> tuple[str, str, str | None]:
    name = str(results["dataset"]) if results else ""
    return DATASETS.get(name, (name, name, None))


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def row(folder: Path, results: Mapping[str, Any] | None, twin: Mapping[str, Any] | None) -> dict[str, Any]:
    """A line about the network in ``folder``, for tables and for programs."""
    config = json.loads((folder / "config.json").read_text())
    count, parameters = counts(folder)
    return {
        "model": _name(config, results),
        "similarity": config.get("model_args", {}).get("similarity", "conv"),
        "dataset": _dataset(results)[0] or None,
        "accuracy": results["test_accuracy"] if results else None,
        "twin_accuracy": twin["test_accuracy"] if twin else None,
        "parameters": parameters,
        "multiplications": count.multiplications,
        "additions": count.additions,
        "energy_fp32_uj": round(count.energy("fp32"), 2),
        "energy_int8_uj": round(count.energy("int8", "int32"), 2),
    }
