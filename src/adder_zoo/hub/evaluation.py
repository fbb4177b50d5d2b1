"""Results in the two forms of the Hub: ``model-index`` in a card's metadata, and files in ``.eval_results/``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from .measured import Measured, measured

HUB = "https://huggingface.co"
SOURCE = "results.json of the training"


def _source(repo_id: str) -> str:
    return f"{HUB}/{repo_id}/blob/main/results.json"


def model_index(repo_id: str, results: Mapping[str, Any], data: Measured) -> list[EvalResult]:
    """The accuracies for the front matter: the older form, which other sites read too."""
    metrics = {"accuracy": ("Top-1 accuracy (%)", results["test_accuracy"])}
    if results.get("test_top5_accuracy") is not None:
        metrics["top_5_accuracy"] = ("Top-5 accuracy (%)", results["test_top5_accuracy"])
    sample = f" (sample of {results['test_images']} images)" if data.remark else ""
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=data.hub_id or str(results["dataset"]),
            dataset_name=f"{data.title}{sample}",
            dataset_split=data.split,
            metric_type=metric,
            metric_name=name,
            metric_value=value,
            source_name=SOURCE,
            source_url=_source(repo_id),
        )
        for metric, (name, value) in metrics.items()
    ]


def eval_results(repo_id: str, results: Mapping[str, Any] | None) -> dict[str, bytes]:
    """``.eval_results/*.yaml`` by path: the accuracy on the whole test set of a data set that the Hub has.

    https://huggingface.co/docs/hub/eval-results. A part of a data set, or images that settings were chosen by, are not
    what others are compared on: those give no file.
    """
    data = measured(results) if results is not None else None
    if results is None or data is None or data.hub_id is None or data.remark or data.noise:
        return {}
    entry = EvalResultEntry(
        dataset_id=data.hub_id,
        task_id="default",  # the name of the task if the owners of the data set make it a benchmark
        value=results["test_accuracy"],
        date=results.get("environment", {}).get("date"),
        source_url=_source(repo_id),
        source_name=SOURCE,
        notes=f"top-1 accuracy in %, {data.split} images",
    )
    text = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    # Named after this package, so that files which others add for the same data set stay.
    return {f".eval_results/adder_zoo-{data.hub_id.rpartition('/')[2]}.yaml": text.encode()}
