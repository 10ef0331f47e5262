"""Whether a long run keeps its memory: many small images through `tools/infer.py`.

python benchmarks/many_images.py --images 10000 --write docs/scaling.md
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from ovseg.pages import PageSection, commit, device_name, markdown_table

ROOT = Path(__file__).resolve().parents[1]
SIZE_HW = (64, 96)
WORDS = "bear, orange, boat, laptop, grass"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, run, watch, print, and where asked write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--method", default="maskclip")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this page")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder) / "photos", Path(folder) / "out"
        draw(photos, arguments.images)
        command = [sys.executable, str(ROOT / "tools" / "infer.py"), str(photos), "-c", WORDS, "-o", str(out)]
        command += ["--method", arguments.method, "--encoder", "bundled", "--device", "cpu", "-q"]
        command += ["--formats", "labels,overlay", "--opts", "short_side=64", "crop=64", "stride=32"]
        begin = time.perf_counter()
        watched = watch(command, out / "results.jsonl", arguments.images, arguments.threads)
        seconds = time.perf_counter() - begin
        written = [len(list((out / kind).iterdir())) for kind in ("labels", "overlays")]
    if written != [arguments.images] * 2:
        raise SystemExit(f"error: {arguments.images} images gave {written} files")
    lines = [
        *markdown_table(["images done", "resident memory, MB"], rows(watched, arguments.images)),
        "",
        f"`{arguments.method}` with the bundled model on {arguments.images} images of {SIZE_HW[1]} x "
        f"{SIZE_HW[0]}, labels and overlays written, {seconds:.0f} s. The process with its children, least "
        f"and most while these were done. {device_name('cpu')}, commit {commit()}.",
    ]
    print("\n".join(lines))
    if arguments.write:
        PageSection("many-images", "benchmarks/many_images.py").write(arguments.write, lines)
    return 0


def draw(folder: Path, number: int) -> None:
    """Images of a few colours each, no two alike."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in tqdm(range(number), desc="images", disable=None):
        coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE_HW[::-1]).save(folder / f"{index:06}.jpg")


def watch(command: Sequence[str], record: Path, number: int, threads: int) -> list[tuple[int, float]]:
    """Runs it; images done and MB, twice a second.

    Raises:
        SystemExit: the run failed.
    """
    found = []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done, at = 0, 0
    with (
        subprocess.Popen(command, env=environment) as process,
        tqdm(total=number, desc="run", unit="image", disable=None) as bar,
    ):
        root = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.5)
            try:
                megabytes = (
                    sum(each.memory_info().rss for each in (root, *root.children(recursive=True))) / 1e6
                )
            except psutil.Error:
                continue
            if not megabytes:  # it has ended
                continue
            if record.exists():
                with record.open("rb") as stream:
                    stream.seek(at)
                    fresh = stream.read()
                at, done = at + len(fresh), done + fresh.count(b"\n")
            bar.update(done - bar.n)
            found.append((done, megabytes))
    if process.returncode:
        raise SystemExit(f"error: the run ended with exit status {process.returncode}")
    return found


def rows(watched: Sequence[tuple[int, float]], number: int, parts: int = 5) -> list[list[str]]:
    """Least and most memory for each part of the run; loading is no part of it."""
    found = []
    for part in range(parts):
        first, last = number * part // parts, number * (part + 1) // parts
        memory = [megabytes for done, megabytes in watched if max(first, 1) <= done <= last]
        found.append([f"{first:,} to {last:,}", f"{min(memory):.0f} to {max(memory):.0f}"])
    return found


if __name__ == "__main__":
    sys.exit(main())
