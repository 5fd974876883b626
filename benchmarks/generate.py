"""How long do four 64x64 pictures at 20 guided steps take, start of the program included, and `--help`?

Prints one JSON line: medians of seconds over a few interleaved runs.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = 5


def seconds(*arguments: str) -> float:
    """Wall time of one command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sfumato.cli.main", *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Run and print."""
    took: dict[str, list[float]] = {"four pictures": [], "help": []}
    with tempfile.TemporaryDirectory() as out:
        for _ in range(RUNS):
            took["help"].append(seconds("--help"))
            took["four pictures"].append(
                seconds("generate", "a red apple, 3d", "-n", "4", "--steps", "20", "--seed", "0", "--out", out)
            )
    print(json.dumps({name: round(statistics.median(times), 3) for name, times in took.items()}))


if __name__ == "__main__":
    main()
