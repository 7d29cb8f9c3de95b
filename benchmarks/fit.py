"""What fit costs beside reading the same bytes, and beside scikit-learn's IncrementalPCA, on latents made up.

python benchmarks/fit.py [--count 100000] [--shape 4 64 64] [--classes 1] [--rounds 5] [--folder /tmp] [--out fit.json]

Every part is a process of its own and reads files in the page cache; the parts of a round follow each other, in an
order that is reversed every time, and ratios are taken within rounds. Parts: numpy's sum over the means, as 64-bit
words ("read", the machine's limit) and as the float16 that they are; fit of k = 0 without and with the sums beside the
shards; fit of k = 16; IncrementalPCA of 16 components over a tenth; what 16 components explain beside a full
randomised SVD of 4,096 latents. `--sweep` instead times k = 0 and 16 over counts, dimensions and classes, one round
each. The folder holds 4 bytes a number: 6.6 GB of 100,000 latents. Peak memory counts what is imported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from sklearn.decomposition import IncrementalPCA
from sklearn.utils.extmath import randomized_svd

from onbrand.api._memory import peak_memory
from onbrand.core import Fitter
from onbrand.data.latents import Key, Store, Summary
from onbrand.data.sums import FOLDER
from onbrand.models.fitting import fit_gaussians
from onbrand.models.pipeline import to_x0

KEY = Key("made up", (512, 512), dtype="float16")
K, SUBSET, SHARD = 16, 4096, 256
PARTS = ("read", "read float16", "k = 0", "k = 0 from sums", "k = 16", "IncrementalPCA", "explained")
RATIOS = {
    "k = 0": "read", "k = 0 beside numpy's float16": "read float16", "k = 0 from sums": "read",
    "k = 16": "IncrementalPCA",
}  # fmt: skip
"""Rate -> the rate that it is divided by."""
VAE = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.18215, shift_factor=None))
PIPE: Any = SimpleNamespace(vae=VAE, device=torch.device("cpu"))
"""All that a fit asks of a pipeline."""


def make(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """A store of latents with variances that fall as those of photos, over white noise."""
    store, d = Store(folder, KEY), int(np.prod(shape))
    generator = torch.Generator().manual_seed(0)
    spread = 30 / torch.arange(1.0, 257)[:, None].sqrt()
    directions = spread * torch.nn.functional.normalize(torch.randn(256, d, generator=generator))
    for start in range(0, count, SHARD):
        number = min(SHARD, count - start)
        rows = 4 + torch.randn(number, 256, generator=generator) @ directions
        rows = (rows + 0.7 * torch.randn(number, d, generator=generator)).reshape(number, *shape) / 0.18215
        keys = [f"{start + i:064x}" for i in range(number)]
        store.add(keys, {"mean": rows, "logvar": torch.zeros_like(rows)}, {})


def do(part: str, folder: Path, count: int, shape: tuple[int, int, int], classes: int) -> dict[str, float]:
    """One part's "seconds" for "latents", "peak_memory_gb", and for "explained" the shares that are lost."""
    warnings.simplefilter("ignore", UserWarning)  # few images of a class
    store, d = Store(folder, KEY), int(np.prod(shape))
    keys = [f"{i:064x}" for i in range(SUBSET if part == "explained" else count)][: len(store)]
    images: list[Any] = [SimpleNamespace(class_name=str(i % classes)) for i in range(len(keys))]
    k = K if part in ("k = 16", "explained") else 0
    if "sums" not in part:
        few = slice(2 * SHARD)
        fit_gaussians(PIPE, Fitter(shape, k), store, Summary(images[few], keys[few], []))  # torch begins
        shutil.rmtree(store.folder / FOLDER, ignore_errors=True)
    begin, latents, loss = time.perf_counter(), len(keys), {}
    if part.startswith("read"):
        for number, file in enumerate(store._shards):
            offset, _ = store._layout(number)["mean"]
            rows = len(store._sums[number]["mean"])
            dtype, numbers = ("uint64", rows * d // 4) if part == "read" else ("float16", rows * d)
            with np.errstate(over="ignore"):  # only its pace is asked for
                np.memmap(file, dtype, "r", offset, numbers).sum()
    elif part == "IncrementalPCA":
        latents = max(len(keys) // 10, 2 * SHARD)
        pca = IncrementalPCA(K)
        for _, mean in store.means(keys[:latents], SHARD):
            pca.partial_fit(to_x0(PIPE, mean).flatten(1).numpy())
    else:
        gaussians = fit_gaussians(PIPE, Fitter(shape, k), store, Summary(images, keys, []))
    seconds = time.perf_counter() - begin
    if part == "explained":
        rows = torch.cat([to_x0(PIPE, mean) for _, mean in store.means(keys, SHARD)]).flatten(1)
        names = [image.class_name for image in images]
        own = rows[[i for i, name in enumerate(names) if name == "0"]]
        own -= own.double().mean(0).float()
        truth = randomized_svd(own.numpy(), K, n_iter=10, random_state=0)[1] ** 2
        explained = float((own @ gaussians["0"].components.T).double().square().sum())
        loss = {"loss": 1 - explained / float(truth.sum())}
    return {
        "seconds": seconds,
        "latents": latents,
        **loss,
        "peak_memory_gb": peak_memory(PIPE.device)["peak_memory_gb"],
    }


def in_process(part: str, folder: Path, shape: tuple[int, ...], count: int, classes: int) -> dict[str, float]:
    """`do` in a process of its own."""
    sizes = [str(number) for number in (*shape, count, classes)]
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--shape", *sizes[:3]]
    process = subprocess.run([*command, "--count", sizes[3], "--classes", sizes[4]], capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{part}: {process.stderr[-2000:]}")
    result: dict[str, float] = json.loads(process.stdout.strip().splitlines()[-1])
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def compare(folder: Path, count: int, shape: tuple[int, int, int], classes: int, rounds: int) -> dict[str, Any]:
    """{"rates": latents a second, "ratios", "peak_memory_gb", "loss"}, by part."""
    make(folder, count, shape)
    in_process("read", folder, shape, count, classes)  # fills the page cache
    rates: dict[str, list[float]] = {part: [] for part in PARTS}
    peak, loss = dict.fromkeys(PARTS, 0.0), 0.0
    for turn in range(rounds):
        for part in PARTS if turn % 2 else PARTS[::-1]:
            if part == "k = 0 from sums":
                in_process("k = 0", folder, shape, count, classes)
            result = in_process(part, folder, shape, count, classes)
            rates[part].append(result["latents"] / result["seconds"])
            peak[part] = max(peak[part], result["peak_memory_gb"])
            loss = max(loss, result.get("loss", 0.0))
    ratios = {
        name: [a / b for a, b in zip(rates[name.partition(" beside")[0]], rates[other], strict=True)]
        for name, other in RATIOS.items()
    }
    for name, values in ratios.items():
        print("{:<30} {median:8.2f} x  ({least:.2f}..{most:.2f})".format(name, **spread(values)), f"{RATIOS[name]}")
    for part in PARTS:
        print(f"{part:<30} {statistics.median(rates[part]):8.0f} a second, {peak[part]:.2f} GB at most")
    print(f"{K} components explain {100 * loss:.3f} % less than a full decomposition")
    return {
        "rates": {part: spread(values) for part, values in rates.items()},
        "ratios": {part: spread(values) for part, values in ratios.items()},
        "peak_memory_gb": peak,
        "loss": loss,
    }


def sweep(folder: Path, count: int, shape: tuple[int, int, int], classes: int, rounds: int) -> dict[str, Any]:
    """{"count", "dimensions", "classes"}: of each size the seconds of k = 0 and 16, the other two as asked for."""
    c, h, w = shape
    sizes = {
        "count": [(count * times // 2, shape, classes) for times in (1, 2, 4)],
        "dimensions": [(count // 2, one, classes) for one in ((c, h // 2, w // 2), shape, (c, 2 * h, 2 * w))],
        "classes": [(count, shape, number) for number in (1, 10, 1000)],
    }
    results: dict[str, Any] = {}
    for axis, points in sizes.items():
        results[axis] = []
        for number, (latents, one, several) in enumerate(points):
            place = folder / f"{axis}{number}"
            make(place, latents, one)
            in_process("read", place, one, latents, several)
            point = {"count": latents, "dimensions": int(np.prod(one)), "classes": several}
            for part in ("read", "k = 0", "k = 16"):
                point[part] = in_process(part, place, one, latents, several)["seconds"]
            results[axis].append(point)
            print(axis, point, flush=True)
            shutil.rmtree(place)
    return results


def draw(results: dict[str, Any], file: Path) -> None:
    """A figure of what `sweep` returns, beside lines for what is linear, and of classes flat."""
    figure = Figure((10, 3.2), layout="constrained")
    for axis, (name, points) in zip(figure.subplots(1, 3, sharey=True), results.items(), strict=True):
        sizes = [point[name] for point in points]
        for part, mark in (("read", "s:"), ("k = 0", "o-"), ("k = 16", "^-")):
            axis.loglog(sizes, [point[part] for point in points], mark, label=part)
        flat = name == "classes"
        line = [points[0]["k = 0"] * (1 if flat else size / sizes[0]) for size in sizes]
        axis.loglog(sizes, line, "k--", linewidth=0.8, label="flat" if flat else "linear")
        axis.set(title=", ".join(f"{other} {points[0][other]:,}" for other in results if other != name))
        axis.set_xlabel("images" if name == "count" else name)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.legend(fontsize=8)
    figure.axes[0].set_ylabel("seconds")
    figure.savefig(file, dpi=130, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--shape", type=int, nargs=3, default=(4, 64, 64))
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(do(args.part, args.folder, args.count, tuple(args.shape), args.classes)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure = sweep if args.sweep else compare
        result = measure(Path(folder), args.count, tuple(args.shape), args.classes, args.rounds)
    about = {"count": args.count, "shape": args.shape, "classes": args.classes, "threads": torch.get_num_threads()}
    if args.out:
        args.out.write_text(json.dumps(about | result, indent=1) + "\n")
    if args.out and args.sweep:
        draw(result, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
