"""What do the first figures look like, all of them? Runs each bench, one JSON file each.

``make bench`` calls this. Each bench measures its opponents in the same interleaved run and checks
every answer; here they only get their files. A bench that fails makes the whole run fail.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="folder for the reports")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the wire tests")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each wire test in a round")
    parser.add_argument("--only", choices=("codec", "typed", "wire"), help="one of them")
    options = parser.parse_args()
    options.json.mkdir(parents=True, exist_ok=True)
    wire = ["-", "--rounds", str(options.rounds), "--seconds", str(options.seconds)]
    failed = 0
    for name, script, arguments in (
        ("codec", "bench_codec.py", []),
        ("typed", "bench_typed.py", []),
        ("wire", "wire.py", wire),
    ):
        if options.only not in (None, name):
            continue
        report = options.json / f"{name}.json"
        print(f"== {name}: {report}", flush=True)
        with report.open("w") as out:
            command = [sys.executable, str(HERE / script), "--json", *arguments]
            failed |= subprocess.run(command, check=False, stdout=out).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
