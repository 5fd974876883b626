"""The proof as a table: what each sampler declares, and the order that is measured on the exact Gaussian mixture.

    python benchmarks/orders.py

The order is log2 of what twice as many steps do to the error: 84 to 168 steps even in log-SNR (the same for all
schedules), and 384 to 768 steps even in time. A sampler with fresh noise is measured at eta = 0 where it has an eta.
The functions are those of `tests/contracts/test_every_sampler.py`, which fails where an order falls short by 0.2.
"""

# ruff: noqa: E402  # the tests must be found first
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from contracts.test_every_sampler import error, off_without_noise, size, solved, stretch
from sfumato.diffusion.samplers import SAMPLERS, Entry
from sfumato.diffusion.schedule import SCHEDULES

COLUMNS = (
    ("cosine", "lam", (84, 168)),
    ("cosine", "time", (384, 768)),
    ("scaled_linear", "time", (384, 768)),
    ("flow", "time", (384, 768)),
)


def measured(entry: Entry, schedule: str, even_in: str, steps: tuple[int, int]) -> str:
    """The order, or nothing where it is not defined."""
    path = SCHEDULES[schedule]()
    (x, end), (a, b) = solved(), stretch(path)
    if entry.adaptive or (entry.stochastic and not entry.takes("eta")):
        return ""
    if entry.stochastic:
        errors = [off_without_noise(entry, path, n) for n in steps] if even_in == "lam" else []
    else:
        errors = [error(entry, path, a, b, n, even_in, x * size(a), end * size(b)) for n in steps]
    return f"{math.log2(errors[0] / errors[1]):.2f}" if errors else ""


def main() -> None:
    """Print the table."""
    print("| sampler | order | calls a step | noise | even in log-SNR | time, cosine | time, SD's table | time, flow |")
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    for entry in SAMPLERS.values():
        calls = "varies" if entry.adaptive else entry.calls
        cells = [entry.order or "", calls, "fresh" if entry.stochastic else "", *(measured(entry, *c) for c in COLUMNS)]
        print(f"| `{entry.name}` | " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
