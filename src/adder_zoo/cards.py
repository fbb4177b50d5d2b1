"""Model cards: rendered from ``results.json`` and ``config.json`` by ``hub_cards/template.md``, never typed.

`make cards` renders those of every shipped checkpoint, and the index of all, into ``hub_cards/``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import yaml_dump

from .report import Count, report

TAG = "addernet"  # what all repositories of adder networks are tagged with
# Under whose name the cards in hub_cards/ are rendered; that of a push takes its place.
ORGANISATION = "adder-zoo"
HUB = "https://huggingface.co"

# What a data set is called, its name on the Hub, and the recipe that trains on it.
DATASETS: dict[str, tuple[str, str, str | None]] = {
    "mnist": ("MNIST", "ylecun/mnist", "recipes/mnist.py"),
    "fashion_mnist": ("Fashion-MNIST", "zalando-datasets/fashion_mnist", "recipes/mnist.py"),
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10", "recipes/cifar.py"),
    "cifar100": ("CIFAR-100", "uoft-cs/cifar100", "recipes/cifar.py"),
    "imagenet": ("ImageNet-1k", "ILSVRC/imagenet-1k", "recipes/imagenet.py"),
}

# Between these two, a push writes; the rest of a card is its owner's.
BEGIN = re.compile(r"<!-- adder_zoo:begin\b.*?-->", re.S)
END = re.compile(r"<!-- adder_zoo:end\b.*?-->", re.S)
FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.S)


def template() -> Path:
    """``hub_cards/template.md``: installed with the package, or in the source tree that the package lies in."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "hub_cards", here.parents[2] / "hub_cards"):
        if (folder / "template.md").is_file():
            return folder / "template.md"
    raise FileNotFoundError("adder_zoo: hub_cards/template.md is missing; install the package again")


# ---- what a card says


def counts(folder: Path, similarity: str | None = None) -> tuple[Count, int]:
    """Operations for one image, and parameters, of the network that is saved in ``folder``, or of its twin."""
    options: dict[str, Any] = {"similarity": similarity} if similarity else {}
    with torch.device("meta"):
        counted = report(timm.create_model(f"local-dir:{folder}", **options))
    return counted.weighted, counted.parameters


def trained_alike(results: Mapping[str, Any], twin: Mapping[str, Any]) -> bool:
    """Whether ``twin`` is of the convolutional twin, with the same data and settings."""

    def record(r: Mapping[str, Any]) -> Any:
        config = {key: value for key, value in r["config"].items() if key != "similarity"}
        return [r.get(key) for key in ("model", "dataset", "data", "test_images", "epochs", "updates")], config

    return twin.get("similarity") == "conv" and record(results) == record(twin)


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
        template_path=str(template()),
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


# ---- a card that is there already


def merge(old: str | None, new: str) -> str:
    """The card ``new`` where the repository has the card ``old``: what people wrote in that stays.

    The generated part takes the place of the one between the two comments, or goes to the end where there is none. Keys
    of the metadata that are there stay as they are, lists are united, and of ``model-index`` the results on the same
    data set by the same metric are replaced.

    Raises:
        ValueError: the old card cannot be read or its comments are damaged; it has to be mended by hand.
    """
    if not old or not old.strip():
        return new
    front, data, body = _split(old)
    _, new_data, new_body = _split(new)
    generated = new_body[_only(BEGIN, new_body).start() : _only(END, new_body).end()]
    begins, ends = list(BEGIN.finditer(body)), list(END.finditer(body))
    if not begins and not ends:
        body = f"{body.rstrip()}\n\n{generated}\n" if body.strip() else f"\n{generated}\n"
    elif len(begins) == len(ends) == 1 and begins[0].end() <= ends[0].start():
        body = body[: begins[0].start()] + generated + body[ends[0].end() :]
    else:
        raise ValueError(
            "README.md of the repository has not one pair of the comments <!-- adder_zoo:begin --> and <!-- "
            "adder_zoo:end -->: mend it by hand, since what is yours in it cannot be told"
        )
    merged = merge_metadata(data, new_data)
    if merged != data:
        front = f"---\n{yaml_dump(merged, sort_keys=False).strip()}\n---\n"
    return front + body


def _only(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    (match,) = pattern.finditer(text)
    return match


def _split(card: str) -> tuple[str, dict[str, Any], str]:
    """Metadata as text and as data, and the rest."""
    match = FRONT.match(card)
    if match is None:
        return "", {}, card
    try:
        data = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of the repository's README.md is no YAML: mend it by hand ({error})") from error
    if not isinstance(data, dict):
        raise ValueError("the metadata of the repository's README.md is no mapping: mend it by hand")
    return match[0], data, card[match.end() :]


def merge_metadata(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with what ``new`` adds; see ``merge``."""
    merged = dict(old)
    for key, value in new.items():
        there = merged.get(key)
        if key == "model-index":
            merged[key] = _merge_index(there or [], value)
        elif there is None:
            merged[key] = value
        elif isinstance(value, list):
            there = there if isinstance(there, list) else [there]
            merged[key] = [*there, *(v for v in value if v not in there)]
    return merged


def _merge_index(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def identity(result: Mapping[str, Any]) -> Any:
        dataset = result.get("dataset", {})
        return result.get("task", {}).get("type"), *(dataset.get(k) for k in ("type", "config", "split", "revision"))

    if not isinstance(old, list) or not all(isinstance(m, dict) and isinstance(m.get("results"), list) for m in old):
        raise ValueError("model-index in the metadata of the repository's README.md is damaged: mend it by hand")
    merged = [{**model, "results": list(model["results"])} for model in old]
    for model in new:
        known = next((m for m in merged if m.get("name") == model["name"]), None)
        if known is None:
            merged.append(model)
            continue
        for result in model["results"]:
            types = {metric["type"] for metric in result["metrics"]}
            kept: list[dict[str, Any]] = []
            at: int | None = None
            for other in known["results"]:
                if identity(other) == identity(result):
                    metrics = [m for m in other.get("metrics", []) if m.get("type") not in types]
                    at = len(kept) if at is None else at
                    if not metrics:
                        continue
                    other = {**other, "metrics": metrics}
                kept.append(other)
            kept.insert(len(kept) if at is None else at, result)
            known["results"] = kept
    return merged


# ---- the index


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


def index(organisation: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """The page of an organisation: one table over all of its models, whose names are those of their repositories."""
    lines = [
        "| model | trained on | top-1 | its CNN twin | parameters | multiplications | additions | energy, fp32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        name = r["model"].rpartition("/")[2]
        accuracies = (f"{r[key]:.2f} %" if r[key] is not None else "" for key in ("accuracy", "twin_accuracy"))
        numbers = (f"{r[key]:,}" for key in ("parameters", "multiplications", "additions"))
        cells = (f"[{name}]({HUB}/{organisation}/{name})", r["dataset"] or "", *accuracies, *numbers)
        lines.append(f"| {' | '.join(cells)} | {r['energy_fp32_uj']:,.2f} µJ |")
    space = {"emoji": "➕", "colorFrom": "green", "colorTo": "gray", "sdk": "static", "pinned": False}
    front = yaml_dump({"title": organisation, **space}, sort_keys=False).strip()
    table = "\n".join(lines)
    return f"""---
{front}
---

<!-- adder_zoo:begin. Written by `adder-zoo push --all`; what stands outside of the two comments stays. -->
Image classifiers whose layers answer with `-Σ|x - w|` in the place of `Σ x·w` ([AdderNet](https://arxiv.org/abs/1912.13200)).
After `import adder_zoo`, `timm.create_model("hf-hub:{organisation}/NAME", pretrained=True)` loads one.

{table}

Operations are those of all layers but normalisation, for one image; energy is that of the arithmetic alone, in 45 nm.
On a GPU an adder network gains nothing.
<!-- adder_zoo:end -->
"""


def shipped() -> list[tuple[str, Path, dict[str, Any], dict[str, Any] | None]]:
    """Every checkpoint in the package: its name, folder, results, and those of its twin (in a checkout)."""
    from .hub import find_twin
    from .models import WEIGHTS

    found = []
    for path in sorted(WEIGHTS.glob("*/results.json")):
        results = json.loads(path.read_text())
        found.append((path.parent.name, path.parent, results, find_twin(path.parent, results)))
    return found


def render_shipped(organisation: str = ORGANISATION) -> dict[str, str]:
    """The cards of every checkpoint in the package and the index, README.md, by file name."""
    found = shipped()
    rendered = {f"{name}.md": render(folder, f"{organisation}/{name}", *rest) for name, folder, *rest in found}
    rows = [{**row(folder, *rest), "model": name} for name, folder, *rest in found]
    return {**rendered, "README.md": index(organisation, rows)}


def write_shipped(folder: str | Path) -> None:
    """What ``make cards`` does."""
    for name, text in render_shipped().items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
