"""The Markdown tables of what ``gpu.py`` measured."""

from __future__ import annotations

from typing import Any

ADDER, CONV = "adder float32", ("conv float32", "conv bfloat16")
POWER = "power float32"


def all_of(record: dict[str, Any]) -> str:
    """Every table for which ``record`` has figures, under the sentence that says what was measured."""
    versions = f"torch {record['torch']}, Triton {record['triton']}"
    lines = [f"{record['device']}, {versions}, batch {record['batch']}, {record['date']}, commit {record['commit']}."]
    for rows in (layers(record), steps(record), cdist(record), rivals(record), powers(record)):
        if rows:
            lines += ["", *rows]
    if record["left_out"]:
        lines += ["", f"Not measured, for the time was over: {'; '.join(record['left_out'])}."]
    lines += [f"\nFailed: {name}: {error}" for name, error in record["failed"].items()]
    return "\n".join(lines)


def layers(record: dict[str, Any]) -> list[str]:
    """A row for each layer and direction: our rate, its share of the peak, and convolutions' time over ours."""
    found = _by_layer(record["layers"])
    if not found:
        return []
    titles = ["network, layer", "direction", "float32, T taps/s", "of the peak", "bfloat16", "int8", *CONV]
    lines = [f"| {' | '.join(titles)} |", "|" + len(titles) * "---|"]
    for (network, layer), rows in found.items():
        for direction in ("forward", "dx", "dw"):
            ours = rows[f"{direction} / {ADDER}"]
            share = "" if ours["share_of_fadd"] is None else f"{100 * ours['share_of_fadd']:.0f} %"
            rates = [_rate(rows.get(f"{direction} / adder {kind}")) for kind in ("bfloat16", "int8")]
            ratios = [_times(rows.get(f"{direction} / {who}"), ours) for who in CONV]
            cells = [f"{network}, {ours['count']} x {layer}", direction, _rate(ours), share, *rates, *ratios]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def steps(record: dict[str, Any]) -> list[str]:
    """Milliseconds and MiB of a training step."""
    if not record["steps"]:
        return []
    lines = ["| a training step | who | ms | MiB |", "|---|---|---|---|"]
    for network, rows in record["steps"].items():
        lines += [f"| {network} | {who} | {row['ms']:.1f} | {row['MiB']:.0f} |" for who, row in rows.items()]
    return lines


def cdist(record: dict[str, Any]) -> list[str]:
    """How many times as fast as torch.cdist, and the memory of both."""
    if not record["cdist"]:
        return []
    lines = ["| N, M, D | forward | forward and backward | MiB, ours / torch's |", "|---|---|---|---|"]
    for row in record["cdist"]:
        ms, memory = row["ms"], row["MiB"]
        ratios = [
            f"{ms[f'{what} / torch'] / ms[f'{what} / adder_zoo']:.1f}" if f"{what} / torch" in ms else "torch's fails"
            for what in ("forward", "both")
        ]
        both = " / ".join(f"{memory[who]:.0f}" if who in memory else "-" for who in ("adder_zoo", "torch"))
        lines.append(f"| {row['N']}, {row['M']}, {row['D']} | {' | '.join(ratios)} | {both} |")
    return lines


def rivals(record: dict[str, Any]) -> list[str]:
    """Other ways to write the forward pass: their time over ours."""
    found = _by_layer(record["rivals"])
    if not found:
        return []
    lines = ["| network, layer | unfold and cdist | compiled broadcast |", "|---|---|---|"]
    for (network, layer), rows in found.items():
        ours = rows[f"forward / {ADDER}"]
        ratios = [_times(rows.get(f"forward / {who}"), ours) for who in ("cdist", "compiled broadcast")]
        lines.append(f"| {network}, {layer} | {' | '.join(ratios)} |")
    return lines


def powers(record: dict[str, Any]) -> list[str]:
    """Σ|x - w|^1.5: its rate, and the time of p = 1 and of plain PyTorch over its own."""
    lines = []
    plain = _by_layer(record["rivals"])
    for (network, layer), rows in (_by_layer(record["layers"]) or plain).items():
        for direction in (d for d in ("forward", "dx", "dw") if f"{d} / {POWER}" in rows):
            ours, others = rows[f"{direction} / {POWER}"], plain.get((network, layer), {})
            one = _times(rows.get(f"{direction} / {ADDER}"), ours)
            eager, beside = others.get(f"{direction} / power in plain PyTorch"), others.get(f"{direction} / {POWER}")
            times = _times(eager, beside) if beside else ""
            lines.append(f"| {network}, {layer} | {direction} | {_rate(ours)} | {one} | {times} |")
    titles = "| network, layer | p = 1.5 | T taps/s | p = 1 | plain PyTorch |"
    return [titles, "|" + 5 * "---|", *lines] if lines else []


def _by_layer(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["network"], row["layer"]), {})[row["what"]] = row
    return found


def _rate(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['taps_per_s'] / 1e12:.2f}"


def _times(row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """Another's time as a multiple of ours."""
    return "" if row is None else f"{row['ms'] / ours['ms']:.2f}"
