"""Model cards: rendered from ``results.json`` and ``config.json`` by ``card.md``, never typed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open
from torch import nn

from ..binary import BinaryConv2d, BinaryLinear
from ..layers import AdderLayer
from ..report import Count, report
from ..results import CONFIG_FILE, WEIGHTS_FILE
from .evaluation import model_index
from .measured import measured
from .records import trained_alike, training_of
from .snippets import Snippet, snippets
from .timed import timed

LICENSES = {"apache-2.0": "Apache-2.0"}  # in words
TAG = "addernet"  # what all repositories of adder networks are tagged with
TEMPLATE = Path(__file__).with_name("card.md")


def build(folder: Path, **options: Any) -> nn.Module:
    """The network that is saved in ``folder``, on "meta"."""
    with torch.device("meta"):
        return timm.create_model(f"local-dir:{folder}", **options)


def counts(folder: Path, similarity: str | None = None) -> tuple[Count, int]:
    """Operations for one image, and parameters, of the network that is saved in ``folder``, or of its twin.

    Those of a network in bytes are the float network's: what it does to a layer's sums stands for batch norm.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    if not in_bytes(config):
        network = build(folder, **({"similarity": similarity} if similarity else {}))
    else:
        args = {key: value for key, value in config["model_args"].items() if key != "int8"}
        cfg = {key: value for key, value in config["pretrained_cfg"].items() if key != "tag"}
        with torch.device("meta"):
            network = timm.create_model(
                config["architecture"], pretrained_cfg=cfg, **{**args, "similarity": similarity or "adder"}
            )
    counted = report(network)
    return counted.without_norm, counted.parameters


def in_bytes(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says of bytes; None for a network in floating point."""
    return config.get("model_args", {}).get("int8")


def similarity_of(config: Mapping[str, Any], folder: Path) -> str:
    """What compares a patch with a filter in the network of ``folder``: "adder", "xnor" or "conv"."""
    said = config.get("model_args", {}).get("similarity")
    if said is not None:
        return str(said)
    layers = list(build(folder).modules())
    if any(isinstance(layer, AdderLayer) for layer in layers):
        return "adder"
    return "xnor" if any(isinstance(layer, (BinaryConv2d, BinaryLinear)) for layer in layers) else "conv"


def headline(folder: Path, results: Mapping[str, Any] | None) -> str:
    """One line about a network: the message of the commit that pushes it."""
    name = _name(json.loads((folder / CONFIG_FILE).read_text()), results)
    if results is None:
        return f"Add {name}"
    return f"{name}: {_percent(results['test_accuracy'])} % on {measured(results).title}"


def render(
    folder: Path,
    repo_id: str,
    results: Mapping[str, Any] | None = None,
    twin: Mapping[str, Any] | None = None,
    stated: Mapping[str, str] | None = None,
    code: Sequence[Snippet] | None = None,
) -> str:
    """The card of the network in ``folder``.

    Args:
        folder: Holds ``config.json``.
        repo_id: Where it goes on the Hub, "organisation/name".
        results: What ``results.json`` of its training holds; without it the card tells operations and energy only.
        twin: ``results.json`` of its convolutional twin.
        stated: Metadata that the owner states, such as ``new_version``.
        code: What ``snippets`` says of it, if that is known already.

    Raises:
        ValueError: ``twin`` is another network's, or was trained otherwise.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    training = training_of(results)
    if twin is not None and (training is None or not trained_alike(training, twin)):
        raise ValueError(f"{repo_id}: the twin was not trained alike: it needs the same model, data and settings")
    similarity = similarity_of(config, folder)
    columns = [(*counts(folder), results)]
    if similarity == "adder" and "similarity" in config.get("model_args", {}):
        columns.append((*counts(folder, "conv"), twin))
    saved = in_bytes(config)
    card = ModelCard.from_template(
        _metadata(_name(config, results), repo_id, similarity, config, results, stated or {}),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        results=results,
        headings=_headings(similarity, saved, len(columns)),
        table=_table(columns) if saved is None else _table_in_bytes(folder, results, columns),
        training=training,
        saved=saved,
        timed=timed(config["architecture"]) if saved is not None else [],
        license=LICENSES.get(licence(config, results) or "", licence(config, results)),
        snippets=snippets(folder, repo_id, config) if code is None else code,
        **_about_network(config, folder, similarity, _name(config, results)),
        **_about_training(results, twin, folder, _name(config, results)),
    )
    return card.content + "\n"


def _about_network(config: Mapping[str, Any], folder: Path, similarity: str, name: str) -> dict[str, Any]:
    """What the template says of the network itself."""
    cfg = config["pretrained_cfg"]
    channels, height, width = cfg["input_size"]
    module = timm.models.model_entrypoint(config["architecture"]).__module__
    return {
        "model": name,
        "similarity": similarity,
        "architecture": config["architecture"],
        # Who registers it with timm: this package, timm, or somebody whose module has to be imported as well.
        "registry": next((owner for owner in ("adder_zoo", "timm") if module.startswith(f"{owner}.")), "other"),
        "convolutions": config.get("model_args", {}).get("convolutions"),
        "input_size": f"{channels} x {height} x {width}",
        "half": _half_precision(folder / WEIGHTS_FILE),
    }


def _headings(similarity: str, saved: Mapping[str, Any] | None, columns: int) -> list[str]:
    if saved is not None:
        return [f"in {saved['bits']} bits", "in float32", "convolutional twin"][: columns + 1]
    return ["adder network" if similarity == "adder" else "this network", "convolutional twin"][:columns]


def _about_training(
    results: Mapping[str, Any] | None, twin: Mapping[str, Any] | None, folder: Path, name: str
) -> dict[str, Any]:
    """What the template says of the training, where there are results."""
    if results is None:
        return {}
    data = measured(results)
    about = {
        "data": data,
        "accuracy": _percent(results["test_accuracy"]),
        "top5": _percent(results.get("test_top5_accuracy")),
        "twin": twin,
        "twin_accuracy": _percent(twin["test_accuracy"]) if twin else None,
        "float_accuracy": _percent(results.get("quantized_from", {}).get("measured_accuracy")),
    }
    if "quantized_from" in results:
        return about
    files = [name for name in ("args.yaml", "log.csv") if (folder / name).is_file()]
    command = None
    if data.recipe and "args.yaml" in files:
        command = f"accelerate launch {data.recipe} --config args.yaml --data-dir FOLDER --output-dir runs/{name}"
    return {
        **about,
        "running": _percent(results.get("test_accuracy_running_statistics")),
        "files": files,
        "command": command,
        "settings": list(results["config"].items()),
        "seconds": f"{results['training_seconds']:,.0f}",
        "environment": results["environment"],
    }


def _half_precision(weights: Path) -> str | None:
    """In which precision weights are stored, if it is less than float32's."""
    if not weights.is_file():
        return None
    with safe_open(weights, "pt") as file:
        found = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118, it is not a dictionary
    names = {"F16": "float16", "BF16": "bfloat16"}
    return " and ".join(sorted(names[dtype] for dtype in found & names.keys())) or None


def _metadata(
    name: str,
    repo_id: str,
    similarity: str,
    config: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    stated: Mapping[str, str],
) -> ModelCardData:
    saved = in_bytes(config)
    data = measured(results) if results else None
    evaluation = model_index(repo_id, results, data) if results and data and not data.noise else None
    further: dict[str, Any] = {**_base_model(repo_id, saved, results), **stated}
    return ModelCardData(
        license=licence(config, results),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=[
            "timm",
            "image-classification",
            TAG,
            *([f"similarity-{similarity}"] if similarity != "adder" else []),
            *([f"int{saved['bits']}"] if saved is not None else []),
        ],
        datasets=[data.hub_id] if data and data.hub_id else None,
        metrics=[result.metric_type for result in evaluation] if evaluation else None,
        model_name=name if evaluation else None,
        eval_results=evaluation,
        **further,
    )


def licence(config: Mapping[str, Any], results: Mapping[str, Any] | None) -> str | None:
    """The licence of the weights, by its name on the Hub; None where nothing tells whose weights they are.

    Then the owner of the repository has to name it: imported weights, and what was made of such.
    """
    known = config["pretrained_cfg"].get("license")
    training = training_of(results)
    if known or training is None:
        return known
    settings = training["config"]
    return None if settings.get("init") or settings.get("pretrained") else "apache-2.0"


def _base_model(repo_id: str, saved: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> dict[str, str]:
    """Which repository has the network that this one was made of, if one has.

    That is the one that it was fetched from, or that of its name beside this one. What came from a folder or a file has
    none.
    """
    if saved is not None:
        origin = (results or {}).get("quantized_from", {})
        name, relation = origin.get("hub") or saved.get("quantized_from"), "quantized"
    else:
        settings = (results or {}).get("config", {})
        name, relation = settings.get("init") or (settings.get("pretrained") and settings.get("model")), "finetune"
    name = str(name or "").partition("@")[0]
    if name.startswith("hf-hub:"):
        name = name.removeprefix("hf-hub:")
    elif "/" not in name and timm.is_model(name):
        name = f"{repo_id.partition('/')[0]}/{name}"
    elif relation == "finetune" or "/" not in name:
        return {}
    return {"base_model": name, "base_model_relation": relation}


def _table(columns: Sequence[tuple[Count, int, Mapping[str, Any] | None]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if any(results for *_, results in columns):
        found = (f"{_percent(r['test_accuracy'])} %" if r else "not trained yet" for *_, r in columns)
        rows.append(("top-1 accuracy", *found))
    if any(results and results.get("test_top5_accuracy") is not None for *_, results in columns):
        found = (f"{_percent(r.get('test_top5_accuracy'))} %" if r else "not trained yet" for *_, r in columns)
        rows.append(("top-5 accuracy", *found))
    rows.append(("parameters", *(f"{parameters:,}" for _, parameters, _ in columns)))
    for what in ("multiplications", "additions", "xnors"):
        numbers = [getattr(count, what) for count, _, _ in columns]
        if any(numbers) or what != "xnors":
            rows.append((what.replace("xnors", "XNORs"), *(f"{number:,}" for number in numbers)))
    for label, precision in (("energy, fp32", ("fp32",)), ("energy, int8 with int32 sums", ("int8", "int32"))):
        rows.append((label, *(f"{count.energy(*precision):,.2f} µJ" for count, _, _ in columns)))
    return rows


def _table_in_bytes(
    folder: Path, results: Mapping[str, Any] | None, columns: Sequence[tuple[Count, int, Mapping[str, Any] | None]]
) -> list[tuple[str, ...]]:
    """Beside what is in bytes the float network, and its twin where it has one."""
    (count, parameters, _), *twins = columns
    origin = (results or {}).get("quantized_from", {})
    rows: list[tuple[str, ...]] = []
    if results is not None:
        accuracies = [results["test_accuracy"], origin.get("measured_accuracy")]
        accuracies += [twin["test_accuracy"] if twin else None for *_, twin in twins]
        rows.append(("top-1 accuracy", *(f"{_percent(a)} %" if a is not None else "not known" for a in accuracies)))
    weights = folder / WEIGHTS_FILE
    if weights.is_file():
        sizes = [weights.stat().st_size, origin.get("bytes"), *(None for _ in twins)]
        rows.append(("file, bytes", *(f"{size:,}" if size else "not known" for size in sizes)))
    rows.append(("parameters", *(f"{n:,}" for n in (parameters, parameters, *(n for _, n, _ in twins)))))
    counted = [count, count, *(c for c, _, _ in twins)]
    for what in ("multiplications", "additions"):
        rows.append((what, *(f"{getattr(c, what):,}" for c in counted)))
    energies = [count.energy("int8", "int32"), *(c.energy("fp32") for c in counted[1:])]
    rows.append(("energy", *(f"{energy:,.2f} µJ" for energy in energies)))
    return rows


def _name(config: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    if results:
        return str(results["model"])
    tag = config["pretrained_cfg"].get("tag")
    return f"{config['architecture']}.{tag}" if tag else config["architecture"]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def row(folder: Path, results: Mapping[str, Any] | None, twin: Mapping[str, Any] | None) -> dict[str, Any]:
    """A line about the network in ``folder``, for tables and for programs."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    count, parameters = counts(folder)
    return {
        "model": _name(config, results),
        "similarity": similarity_of(config, folder),
        "dataset": measured(results).title if results else None,
        "accuracy": results["test_accuracy"] if results else None,
        "twin_accuracy": twin["test_accuracy"] if twin else None,
        "parameters": parameters,
        "multiplications": count.multiplications,
        "additions": count.additions,
        "energy_fp32_uj": round(count.energy("fp32"), 2),
        "energy_int8_uj": round(count.energy("int8", "int32"), 2),
    }
