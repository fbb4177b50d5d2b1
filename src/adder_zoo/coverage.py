"""Which of timm's networks ``convert_to_adder`` takes, and why not the others.

    python -m adder_zoo.coverage                                    every network of timm, some minutes
    python -m adder_zoo.coverage 'resnet*' --json coverage.json     those whose name fits
    python -m adder_zoo.coverage --markdown docs/coverage.md        the table of this repository

Each network is built on torch's meta device, so that size does not matter, converted, and run forward; the first of
each family that converts is run backward as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, model_entrypoint
from torch import nn
from tqdm import tqdm

from .convert import convert_to_adder, is_convolution
from .layers import Adder2d, adder_parameters

STATUSES = ("converted", "refused", "no convolutions", "failed")


@dataclass
class Outcome:
    """What became of one network.

    Attributes:
        model, family: Its name, and timm's module that defines it.
        status: "converted"; "refused", with the reason; "no convolutions" beyond the first layer and gates, so there
            is nothing to convert; "failed", which never should be.
        convolutions: Before conversion.
        converted: How many of them became adder layers.
        reason: Of a refusal or a failure.
        warning: Of ``convert_to_adder``: layers behind which no normalisation stands.
        backward: Whether gradients reached every adder filter; None where that was not tried.
    """

    model: str
    family: str
    status: str = "failed"
    convolutions: int = 0
    converted: int = 0
    reason: str = ""
    warning: str = ""
    backward: bool | None = field(default=None)


def _family(name: str) -> str:
    return model_entrypoint(name).__module__.rpartition(".")[2]


def examine(name: str, backward: bool = False) -> Outcome:
    """Converts timm's network ``name`` on the meta device and runs it."""
    outcome = Outcome(name, _family(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
                outcome.convolutions = sum(map(is_convolution, model.modules()))
                if not outcome.convolutions:
                    outcome.status = "no convolutions"
                    return outcome
                convert_to_adder(model)
        except ValueError as error:
            header, *lines = str(error).splitlines()
            # The lines between say which layers and why; the last one what to do about it.
            outcome.reason = "; ".join(line.strip() for line in lines[:-1]) or header
            outcome.status = "no convolutions" if "nothing to convert" in header else "refused"
            return outcome
        except Exception as error:
            outcome.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return outcome
    outcome.converted = sum(isinstance(m, Adder2d) for m in model.modules())
    outcome.warning = " ".join(str(w.message) for w in caught if "convert_to_adder" in str(w.message))
    try:
        _run(model, name, backward, outcome)
        outcome.status = "converted"
    except Exception as error:
        outcome.reason = f"forward: {type(error).__name__}: {' '.join(str(error).split())}"
    return outcome


def _run(model: nn.Module, name: str, backward: bool, outcome: Outcome) -> None:
    cfg = get_pretrained_cfg(name)
    size = cfg.input_size if cfg else (3, 224, 224)
    x = torch.empty(2, *size, device="meta")
    with torch.set_grad_enabled(backward):
        y = model(x)
        if backward:
            for leaf in torch.utils._pytree.tree_leaves(y):
                leaf.sum().backward(retain_graph=True)
            outcome.backward = all(w.grad is not None for w in adder_parameters(model))


def examine_all(names: Sequence[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    tried: set[str] = set()
    for name in tqdm(names, unit="model", disable=not sys.stderr.isatty()):
        family = _family(name)
        outcomes.append(examine(name, backward=family not in tried))
        if outcomes[-1].status == "converted":
            tried.add(family)
    return outcomes


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Counts by status; the share of the networks with convolutions that converted."""
    counts = Counter(o.status for o in outcomes)
    convolutional = counts["converted"] + counts["refused"] + counts["failed"]
    return {
        **{status: counts[status] for status in STATUSES},
        "convolutional": convolutional,
        "share_converted": round(counts["converted"] / convolutional, 4) if convolutional else None,
    }


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table of ``docs/coverage.md``."""
    total = summary(outcomes)
    lines = [
        "# Which of timm's networks become adder networks",
        "",
        f"timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}; rendered by "
        "`python -m adder_zoo.coverage --markdown docs/coverage.md`.",
        "",
        f"Of {len(outcomes)} networks {total['convolutional']} hold convolutions beyond their first layer and gates. "
        f"`convert_to_adder` takes **{total['converted']} ({100 * (total['share_converted'] or 0):.1f} %)** as they "
        f"are and refuses {total['refused']} with a reason; {total['failed']} fail. A `filter_fn` that leaves out the "
        "layers named in a refusal converts the rest.",
        "",
        '"Unnormalised": `convert_to_adder` warns of layers behind which, in the order of definition, no normalisation '
        "stands. These networks run, but will not train as they are; unless, as in the pre-activation networks of "
        "`resnetv2`, the next block begins with one.",
        "",
        "| family | networks | converted | of these unnormalised | refused | no convolutions |",
        "|---|---|---|---|---|---|",
    ]
    families: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        families.setdefault(outcome.family, []).append(outcome)
    for family, members in sorted(families.items()):
        counts = Counter(o.status for o in members)
        warned = sum(bool(o.warning) for o in members if o.status == "converted")
        lines.append(
            f"| {family} | {len(members)} | {counts['converted']} | {warned or ''} | "
            f"{counts['refused'] + counts['failed'] or ''} | {counts['no convolutions'] or ''} |"
        )
    lines += ["", "## Refused", "", "| network | layers and reason |", "|---|---|"]
    lines += [f"| {o.model} | {o.reason} |" for o in outcomes if o.status in ("refused", "failed")]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adder_zoo.coverage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of timm's model names")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every outcome")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table")
    args = parser.parse_args(argv)
    names = [name for name in timm.list_models(args.pattern) if not name.startswith("adder_")]
    if not names:
        parser.error(f"timm has no model {args.pattern!r}")
    outcomes = examine_all(names)
    if args.json:
        args.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(outcomes))
    for outcome in outcomes:
        if outcome.status in ("refused", "failed"):
            print(f"{outcome.model}: {outcome.status}: {outcome.reason}")
    print(json.dumps(summary(outcomes), indent=2))
    return 1 if any(o.status == "failed" for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
