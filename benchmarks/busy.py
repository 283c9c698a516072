"""What other busy processes cost: eigendecompositions and the demo, idle and beside loops that never wait.

    python benchmarks/busy.py [--loops 3] [--demo] [--repeat 5]

torch's OpenMP threads spin while they wait for each other, by default for so long that they take the processor from
the thread they wait for as soon as others want it too. `bilinear-circuits` sets GOMP_SPINCOUNT=3000 where nothing is
set. Each row is one setting in processes of its own, all in one run: seconds idle, seconds busy, and their ratio.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUERY = ROOT / "configs/circuits/sentiment_negation.yaml"
SETTINGS = {
    "torch's default": {},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
EIGH = """
import sys, time, torch
matrices = torch.randn(8, 384, 384, generator=torch.Generator().manual_seed(0))
matrices = matrices + matrices.mT
torch.linalg.eigh(matrices[:1])
started = time.perf_counter()
torch.linalg.eigh(matrices)
print(time.perf_counter() - started)
"""


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Loops beside what is measured."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def environment(setting: dict[str, str]) -> dict[str, str]:
    """The environment of this process with one way of waiting."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("GOMP_", "OMP_"))}
    return ours | {"HF_HUB_OFFLINE": "1"} | setting


def eigh(setting: dict[str, str], timeout: float) -> float:
    """Seconds of eight decompositions of 384 x 384, without the start of the process; infinite after the timeout."""
    line = [sys.executable, "-c", EIGH]
    try:
        done = subprocess.run(
            line, env=environment(setting), capture_output=True, text=True, check=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return float("inf")
    return float(done.stdout)


def demo(setting: dict[str, str]) -> float:
    """Seconds of `make demo`'s command, as its user waits for them."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "bilinear_circuits.cli", "circuits", str(QUERY), "--out", f"{folder}/out"]
        started = time.perf_counter()
        subprocess.run(line, env=environment(setting), capture_output=True, check=True, cwd=ROOT)
    return time.perf_counter() - started


def row(name: str, idle: float, under_load: float, timeout: float) -> str:
    """One line of the table."""
    shown = f"{under_load:9.2f}" if under_load < float("inf") else f"> {timeout:7.0f}"
    ratio = f"{under_load / idle:8.1f}" if under_load < float("inf") else f"> {timeout / idle:6.0f}"
    return f"{name:<36}{idle:9.2f}{shown:>11}{ratio:>10}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=3, help="busy processes beside it")
    parser.add_argument("--repeat", type=int, default=5, help="runs of the decompositions; the median counts")
    parser.add_argument("--timeout", type=float, default=120, help="seconds after which a run of them is given up")
    parser.add_argument("--demo", action="store_true", help="the demo too, as the command line runs it: minutes")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, {asked.loops} busy loops\n{'':<36}{'idle s':>9}{'busy s':>11}{'ratio':>10}")
    for name, setting in SETTINGS.items():
        idle = sorted(eigh(setting, asked.timeout) for _ in range(asked.repeat))[asked.repeat // 2]
        with busy(asked.loops):
            loaded = sorted(eigh(setting, asked.timeout) for _ in range(asked.repeat))[asked.repeat // 2]
        print(row(f"8 eigh of 384, {name}", idle, loaded, asked.timeout), flush=True)
    if asked.demo:
        idle = demo({})
        with busy(asked.loops):
            loaded = demo({})
        print(row("the demo, as the command sets it", idle, loaded, asked.timeout), flush=True)


if __name__ == "__main__":
    main()
