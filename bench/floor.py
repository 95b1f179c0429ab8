"""Has the codec become slower, beside msgspec and pickle in the same run?

    python bench/floor.py              runs bench/test_codec.py and prints ratios beside floors
    python bench/floor.py --write      makes the ratios of this run the ones to hold

bench/floor.json holds the ratios of a quiet run, times of the rival by ours. Never are times
compared that were measured at different times: only ratios, and with a wide tolerance. A ratio
below TOLERANCE times the stored one is a loss that noise does not explain.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLOOR = HERE / "floor.json"
TOLERANCE = 0.6
# Seconds for pytest-benchmark's whole run.
RUN_S = 300.0

Ratios = dict[str, dict[str, float]]


def measure(items: str = "") -> Ratios:
    """By direction and item, how many times a rival's time ours is better; `items`: pytest's -k."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        command = [
            sys.executable, "-m", "pytest", "test_codec.py", "-q", "-p", "no:cacheprovider",
            f"--benchmark-json={path}", "-k", items,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=HERE, capture_output=True, text=True, timeout=RUN_S, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}{done.stderr}")
        found = json.loads(path.read_text())
    times: dict[str, dict[str, float]] = {}
    for row in found["benchmarks"]:
        # The minimum is what the code costs; the rest is what the machine adds.
        times.setdefault(row["group"], {})[row["extra_info"]["contender"]] = row["stats"]["min"]
    return {
        group: {rival: theirs / own["tumen"] for rival, theirs in own.items() if rival != "tumen"}
        for group, own in times.items()
    }


def losses(ratios: Ratios, floor: Ratios) -> list[str]:
    """What has fallen below its floor, in words; an item without a floor is one too."""
    found = []
    for group, rivals in ratios.items():
        for rival, ratio in rivals.items():
            held = floor.get(group, {}).get(rival)
            if held is None:
                found.append(f"{group} has no floor beside {rival}: bench/floor.py --write")
            elif ratio < TOLERANCE * held:
                found.append(
                    f"{group}: {ratio:.2f} times as fast as {rival}, and {held:.2f} is on record"
                )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="floor", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keeps the ratios of this run")
    options = parser.parse_args()
    ratios = measure()
    if options.write:
        rounded = {
            group: {rival: round(ratio, 2) for rival, ratio in rivals.items()}
            for group, rivals in ratios.items()
        }
        FLOOR.write_text(json.dumps(rounded, indent=1) + "\n")
        return 0
    floor: Ratios = json.loads(FLOOR.read_text())
    for group, rivals in ratios.items():
        told = ", ".join(
            f"{ratio:.2f} of {rival} (on record {floor.get(group, {}).get(rival, 0):.2f})"
            for rival, ratio in rivals.items()
        )
        print(f"{group:<24} {told}")
    found = losses(ratios, floor)
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
