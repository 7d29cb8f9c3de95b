"""How long the front doors take: `import onbrand.core` beside `import torch`, and `onbrand --help`.

    python benchmarks/imports.py [rounds]

Each round starts a fresh interpreter for each, in turn, so that both meet the same machine; the ratio is taken within
rounds. Wanted: onbrand.core <= 1.1 x torch, `onbrand --help` <= 0.5 s. Exit code 1 where the median misses either.
"""

import statistics
import subprocess
import sys
import time

WANTED_RATIO, WANTED_HELP = 1.1, 0.5
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import onbrand.core": ["-c", "import onbrand.core"],
    "onbrand --help": ["-m", "onbrand", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Wall-clock time of one fresh interpreter."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def told(name: str, values: list[float], unit: str) -> str:
    """Median and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{name:<34} {middle:6.3f} {unit} (middle half {low:.3f}..{high:.3f}, {len(values)} rounds)"


def main(rounds: int = 15) -> int:
    """Print the table; returns the exit code."""
    if rounds < 2:
        raise SystemExit(f"a spread needs 2 rounds or more: got {rounds}")
    for arguments in COMMANDS.values():
        seconds(arguments)  # fills the disk cache and writes the bytecode
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds):
        for name in list(COMMANDS) if turn % 2 else list(COMMANDS)[::-1]:
            times[name].append(seconds(COMMANDS[name]))
    for name, values in times.items():
        print(told(name, values, "s"))
    ratios = [ours / torchs for ours, torchs in zip(times["import onbrand.core"], times["import torch"], strict=True)]
    print(told("onbrand.core over torch, paired", ratios, "x"))
    missed = statistics.median(ratios) > WANTED_RATIO or statistics.median(times["onbrand --help"]) > WANTED_HELP
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
