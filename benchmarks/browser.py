"""Milliseconds of a page of ``adder-zoo export --format page`` in headless Chromium.

    python benchmarks/browser.py FOLDER [--json]

Opens the page from the folder, presses every example of every network ten times, and reads what the page says of each
prediction. The first one of a network, before the browser has optimised its code, stands apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support")]

from browser import Opened, browser  # noqa: E402

from adder_zoo.page.folder import networks_of  # noqa: E402

ROUNDS = 10


def measured(folder: Path) -> dict[str, object]:
    rows = []
    with browser() as started, Opened(started, folder) as page:
        networks = networks_of(folder)
        for i, network in enumerate(networks):
            if len(networks) > 1:
                page.page.locator(".choice input").nth(i).check(force=True)
            times = []
            for _ in range(ROUNDS):
                for button in page.page.locator("#examples button").all():
                    before = page.answered()
                    button.click()
                    page.wait_beyond(before)
                    times.append(page.milliseconds())
            rows.append({"network": network["name"], "first": times[0], "median": statistics.median(times[1:])})
        opening = page.seconds_to_open
    return {"bytes": (folder / "index.html").stat().st_size, "seconds_to_open": round(opening, 2), "networks": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measured(args.folder)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['bytes']:,} bytes, {found['seconds_to_open']} s from opening to the first answer")
    for row in found["networks"]:  # type: ignore[attr-defined]
        print(f"{row['network']}: first {row['first']} ms, median {row['median']} ms")


if __name__ == "__main__":
    main()
