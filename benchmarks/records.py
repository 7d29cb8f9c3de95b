"""What it takes to open a folder of images by its metadata: seconds and memory, of which no image is read.

python benchmarks/records.py [--counts 100000 1000000] [--folder /tmp] [--out records.json]

Each count is opened in a process of its own, from a folder of that many empty files in sub-folders of 1,000 and a
metadata.jsonl with a caption and one of 1,000 classes each, its names in the file system's cache. "seconds" are those
of `open_folder`, "cpu" the processor's of these; peak memory counts what is imported, which "imports_gb" is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from onbrand.api._memory import peak_memory
from onbrand.data.records import open_folder


def make(folder: Path, count: int) -> None:
    """The folder."""
    with open(folder / "metadata.jsonl", "w") as file:
        for i in range(count):
            if i % 1000 == 0:
                (folder / f"{i // 1000:04d}").mkdir()
            name = f"{i // 1000:04d}/{i:07d}.png"
            (folder / name).touch()
            text = f"a photo of garment {i}, front view, on a grey background"
            file.write(json.dumps({"file_name": name, "text": text, "class": str(i * 7919 % 1000)}) + "\n")


def measure(folder: Path) -> dict[str, float]:
    """One opening."""
    cpu = torch.device("cpu")
    imports, begin, processor = peak_memory(cpu)["peak_memory_gb"], time.perf_counter(), time.process_time()
    images = len(open_folder(folder).records)
    return {
        "images": images,
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - processor,
        "imports_gb": imports,
        "peak_memory_gb": peak_memory(cpu)["peak_memory_gb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=(100_000, 1_000_000))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        print(json.dumps(measure(args.open)))
        return
    results = []
    for count in args.counts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            make(Path(folder), count)
            command = [sys.executable, __file__, "--open", folder]
            results.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            print("{images} images: {seconds:.2f} s, of the processor {cpu:.2f}".format(**results[-1]), end=", ")
            print("{peak_memory_gb:.2f} GB, {imports_gb:.2f} before".format(**results[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
