"""Instructions, code and memory of whole networks on processors with and without a multiplier, counted in qemu.

    python benchmarks/processors.py --data-dir DATA [--processors rv32i rv32im] [--cmsis-nn FOLDER] [--write]

LeNet-5-BN on MNIST and ResNet-20 on CIFAR-10 are exported as C three times (int8, int8 without a multiplication, and
the convolutional twin in int8), compiled by gcc and run on real images. Every logit is held against Python's. With
``--write`` docs/deploy/processors.json and its page are written.

How is counted: on RISC-V by the counter `minstret`; on ARM by the board's timer, of which a tick is 40 instructions;
both exact and the same on every run with `-icount shift=0`. An instruction is not a cycle.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks/bare_metal"), str(ROOT / "tests/support")]

import cmsis_nn  # noqa: E402
import emulate  # noqa: E402
from integer_images import read  # noqa: E402
from small_networks import fitted  # noqa: E402

import adder_zoo  # noqa: E402

NETWORKS = {"lenet5_bn": ("adder_lenet5_bn.mnist", "mnist"), "resnet20": ("adder_resnet20.cifar10", "cifar10")}
KINDS = ("adder", "adder without multiplications", "convolution")
CMSIS_NN = "convolution, CMSIS-NN"
NO_MULTIPLIER = ("rv32i", "rv32e")
PAGE = ROOT / "docs/deploy/processors"


def integer_network(network: str, kind: str, data: str):
    """The integer network, and test images."""
    model_name, dataset = NETWORKS[network]
    calibration, _ = read(dataset, "train", data, 256)
    images, _ = read(dataset, "test", data, 10)
    model = timm.create_model(model_name, pretrained=True).eval()
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    shape = [torch.tensor(v).view(-1, 1, 1) for v in (mean, std)]
    if kind == "convolution":
        torch.manual_seed(0)
        twin = timm.create_model(model_name.partition(".")[0], similarity="conv")
        small = fitted(twin, model.pretrained_cfg["input_size"])
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="quantize: these adder layers stay float32")
            small = adder_zoo.quantize(model, (calibration.permute(0, 3, 1, 2) / 255 - shape[0]) / shape[1])
    free = kind == "adder without multiplications"
    return adder_zoo.to_integers(small, calibration, mean=mean, std=std, multiplier_free=free), images


def rows_of(network: str, kind: str, processors: list[str], data: str, count: int) -> list[dict]:
    """A row for each processor; a wrong integer ends it."""
    integers, images = integer_network(network, kind, data)
    folder = ROOT / "build/processors" / f"{network}-{kind.replace(' ', '-')}"
    adder_zoo.export_c(integers, folder, "network", images, replace=True)
    rows = []
    for name in processors:
        for products in ("", "PRODUCTS_BY_BITS") if kind == "convolution" and name in NO_MULTIPLIER else ("",):
            some = images[: 1 if kind == "convolution" and name in NO_MULTIPLIER else count]
            measured = emulate.measure(
                emulate.PROCESSORS[name], folder, "network", some.numpy().tobytes(), len(some),
                [products] if products else [],
            )  # fmt: skip
            wanted = [f"{' '.join(map(str, row))}: {max(range(len(row)), key=row.__getitem__)}"
                      for row in integers(some).tolist()]  # fmt: skip
            if measured.answers != wanted:
                raise SystemExit(f"{network} ({kind}) on {name}: {measured.answers} is not Python's {wanted}")
            if kind == "adder without multiplications" and measured.multiplies:
                raise SystemExit(f"{network} on {name}: the disassembly has a multiplication or division")
            rows.append({
                "network": network, "kind": kind + (", products by hand" if products else ""), "processor": name,
                "images": len(some), "instructions": round(sum(measured.instructions) / len(some)),
                "code_bytes": measured.code, "constant_bytes": measured.constants, "memory_bytes": measured.memory,
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def row_of_cmsis_nn(sources: Path, data: str, count: int = 4) -> dict:
    """The twin of LeNet-5-BN as calls of CMSIS-NN on Cortex-M4; ends if its logits are others."""
    integers, images = integer_network("lenet5_bn", "convolution", data)
    images, folder = images[:count], ROOT / "build/processors/cmsis-nn"
    unit = cmsis_nn.write(integers, images, sources.resolve(), folder, "network")
    # It reads words by memcpy, which -ffreestanding alone would make calls of.
    measured = emulate.measure(
        emulate.PROCESSORS["cortex-m4"], folder, "network", images.numpy().tobytes(), count,
        extra=[f"-I{sources.resolve() / 'Include'}", "-fbuiltin", "-O3"], libraries=["-lc"],
    )  # fmt: skip
    for answer, wanted in zip(measured.answers, (integers(images) / unit).tolist(), strict=True):
        logits = [int(word) for word in answer.partition(":")[0].split()]
        if max(abs(a - b) for a, b in zip(logits, wanted, strict=True)) > cmsis_nn.APART:
            raise SystemExit(f"CMSIS-NN answers {logits}, which is not {wanted}")
    return {
        "network": "lenet5_bn", "kind": CMSIS_NN, "processor": "cortex-m4", "images": count,
        "instructions": round(sum(measured.instructions) / count), "code_bytes": measured.code,
        "constant_bytes": measured.constants, "memory_bytes": measured.memory,
    }  # fmt: skip


def page(rows: list[dict]) -> str:
    """The rows as Markdown."""
    text = (ROOT / "benchmarks/bare_metal/page.md").read_text()
    lines = []
    cells = {(r["network"], r["processor"], r["kind"]): r for r in rows}
    for network, processor in dict.fromkeys((r["network"], r["processor"]) for r in rows):
        counts = [cells.get((network, processor, kind)) for kind in (*KINDS, "convolution, products by hand")]
        millions = [f"{c['instructions'] / 1e6:.2f}" if c else "" for c in counts]
        ours, free, twin, by_hand = (c["instructions"] if c else 0 for c in counts)
        best = free if processor in NO_MULTIPLIER else min(ours, free)
        ratios = [f"{other / best:.1f}" if other and best else "" for other in (twin, by_hand)]
        lines.append(f"| {network} | {processor} | {' | '.join(millions)} | {' | '.join(ratios)} |")
    sizes = [
        f"| {r['network']} | {r['kind']} | {r['processor']} | {r['code_bytes']:,} | {r['constant_bytes']:,} | "
        f"{r['memory_bytes']:,} |"
        for r in rows
        if r["processor"] in ("rv32i", "cortex-m4") and "by hand" not in r["kind"] and r["kind"] != CMSIS_NN
    ]
    rival = cells.get(("lenet5_bn", "cortex-m4", CMSIS_NN))
    beside = "- CMSIS-NN was not run beside it."
    if rival:
        beside = (
            "- CMSIS-NN (`--cmsis-nn FOLDER` names its sources; gcc `-O3`) takes "
            f"{rival['instructions'] / 1e6:.2f} million for the twin of LeNet-5-BN\n"
            "  on Cortex-M4. Its logits are the twin's, within two of its coarser units."
        )
    return text.replace("CMSIS_NN", beside).replace("INSTRUCTIONS", "\n".join(lines)).replace("SIZES", "\n".join(sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="holds mnist/ and cifar10/, as the tests take them")
    parser.add_argument("--processors", nargs="+", choices=list(emulate.PROCESSORS), default=list(emulate.PROCESSORS))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--cmsis-nn", type=Path, metavar="FOLDER", help="sources of CMSIS-NN, to count them as well")
    parser.add_argument("--write", action="store_true", help="write docs/deploy/processors.json and .md")
    options = parser.parse_args()
    try:
        emulate.check_tools(options.processors)
    except emulate.Missing as error:
        raise SystemExit(str(error)) from None
    torch.set_num_threads(1)
    rows = []
    for network in options.networks:
        for kind in KINDS:
            count = 10 if network == "lenet5_bn" else 1
            rows += rows_of(network, kind, options.processors, options.data_dir, count)
    if options.cmsis_nn:
        emulate.check_tools(["cortex-m4"])
        rows.append(row_of_cmsis_nn(options.cmsis_nn, options.data_dir))
    if options.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        PAGE.with_suffix(".md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
