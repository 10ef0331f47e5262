"""What a large raster costs: seconds and peak memory of each stage of a run, to the end.

    python benchmarks/raster.py                                       (prints the table)
    python benchmarks/raster.py --write docs/outputs.md
    python benchmarks/raster.py --cases maskclip:5000

Makes GeoTIFFs of land, water and fields, block by block, and runs tools/infer.py on them in a process of its
own, whose memory (resident, with all libraries) is sampled while it works. A case is a method with the
bundled models and a side in pixels. The method `colours` stands in for networks: with it the table shows what
all else costs, on larger rasters. All files are temporary.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from affine import Affine

from ovseg.geo import open_raster
from ovseg.pages import PageSection, commit, device_name, markdown_table

ROOT = Path(__file__).resolve().parents[1]
#: Classes of the drawn land, and their colours.
LAND = {
    "water": (44, 92, 148),
    "sand": (214, 190, 140),
    "field": (150, 178, 84),
    "forest": (38, 84, 46),
    "town": (128, 118, 116),
}
FORMATS = "labels,overlay,geojson"
STAND_IN = "colours"
BLOCK, EVERY_S = 1024, 0.05
#: What is under way, by the file that is being written: the last one there is counts.
STAGES = {
    "tiles, blended": ".rasters/*/tiles.txt",
    "labels": "labels/*.tmp",
    "overlay": "overlays/*.tmp",
    "geojson": "geojson/*.tmp",
}


def draw_raster(path: Path, side: int) -> None:
    """A square GeoTIFF whose memory is a strip: hills, cut by heights into water, sand, fields, ..."""
    colors, rng = np.array(list(LAND.values()), np.float32), np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 1}
    x = np.arange(side, dtype=np.float32)
    with open_raster(path, "w", interleave="pixel", **profile) as out:
        for top in range(0, side, BLOCK):
            y = np.arange(top, min(top + BLOCK, side), dtype=np.float32)[:, None]
            for left in range(0, side, BLOCK):
                across = x[left : left + BLOCK]
                height = np.zeros((len(y), len(across)), np.float32)
                for wide, bend in ((700, 1), (230, 2), (71, 3), (23, 5)):
                    waves = np.sin((across + 37 * bend) / wide + bend * np.sin(y / (3 * wide)))
                    height += waves * np.cos(y / wide - bend)
                kind = np.digitize(height, (-1.2, -0.9, 0.4, 1.3))
                grain = rng.integers(-2, 3, kind.shape)[..., None] * 4
                values = (colors[kind] + grain).clip(0, 255).astype(np.uint8)
                window = ((top, top + len(y)), (left, left + len(across)))
                out.write(values.transpose(2, 0, 1), window=window)


class Colours:
    """Stands in for a method: the class of the nearest colour, on cells of 8 pixels as methods give them."""

    notice = ""

    def bank(self, classes: Any, templates: Any) -> None:
        """No words are read."""

    def describe(self) -> dict[str, Any]:
        """For the run's settings."""
        return {"method": "colours"}

    @property
    def device(self) -> Any:
        """As methods have one."""
        import torch

        return torch.device("cpu")

    def answers(self, images: Any, classes: Any, **given: Any) -> Iterator[Any]:
        """Labels and scores of each tile."""
        import cv2

        from ovseg.answers import Answers
        from ovseg.results import Segmentation

        colors = np.array(list(LAND.values()), np.float32)
        for image in images:
            hw = image.shape[0], image.shape[1]
            small = cv2.resize(image, (hw[1] // 8, hw[0] // 8), interpolation=cv2.INTER_AREA)
            near = -np.square(small[None].astype(np.float32) - colors[:, None, None]).sum(-1) / 500
            scores = np.exp(near - near.max(0))
            scores = (scores / scores.sum(0)).astype(np.float32)
            labels, sure = (
                cv2.resize(each, hw[::-1], interpolation=cv2.INTER_NEAREST)
                for each in (scores.argmax(0).astype(np.uint8), scores.max(0))
            )
            yield Answers(hw, classes.names, Segmentation(labels, classes.names, sure, scores=scores))


def run_stand_in(given: Sequence[str]) -> int:
    """tools/infer.py with `Colours`, in this process."""
    spec = importlib.util.spec_from_file_location("infer", ROOT / "tools" / "infer.py")
    assert spec is not None
    assert spec.loader is not None
    infer: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(infer)
    infer.build_predictor = lambda *given, **options: Colours()
    return infer.main(list(given))


def watch(command: Sequence[str], out: Path) -> dict[str, tuple[float, float]]:
    """Runs a command to its end; seconds and peak memory in MB of each stage."""
    found: dict[str, tuple[float, float]] = {}
    process = psutil.Popen(command)
    before = time.perf_counter()
    while process.poll() is None:
        stage = next(
            (name for name, files in reversed(STAGES.items()) if next(out.glob(files), None)), "start"
        )
        if stage == "start" and found and list(found) != ["start"]:
            stage = list(found)[-1]
        time.sleep(EVERY_S)
        try:
            memory = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            break
        now = time.perf_counter()
        seconds, peak = found.get(stage, (0.0, 0.0))
        found[stage] = seconds + now - before, max(peak, memory)
        before = now
    if process.wait():
        raise SystemExit(f"error: the run failed (exit status {process.returncode})")
    return found


def measure(method: str, side: int, folder: Path) -> list[tuple[str, ...]]:
    """Rows of one raster's stages."""
    raster, out = folder / f"{side}.tif", folder / f"out-{method}-{side}"
    draw_raster(raster, side)
    alone = method == STAND_IN
    command = [sys.executable, *([__file__, "--stand-in"] if alone else [str(ROOT / "tools" / "infer.py")])]
    command += [str(raster), "-c", ", ".join(LAND), "--formats", FORMATS, "-q", "-o", str(out)]
    command += [] if alone else ["--method", method, "--encoder", "bundled", "--device", "cpu"]
    stages = watch(command, out)
    stages["all"] = (sum(seconds for seconds, _ in stages.values()), max(peak for _, peak in stages.values()))
    [regions] = (out / "geojson").iterdir()
    with regions.open() as lines:
        count = sum(line.startswith('{"type": "Feature",') for line in lines)
    print(f"{side} x {side}: {count} regions, {regions.stat().st_size / 2**20:.0f} MB of GeoJSON", flush=True)
    raster.unlink()
    return [
        (f"{side} x {side}", method, stage, f"{seconds:.1f}", f"{peak:.0f}")
        for stage, (seconds, peak) in stages.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and where asked write."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["--stand-in"]:
        return run_stand_in(given[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["maskclip:4000", f"{STAND_IN}:4000", f"{STAND_IN}:20000"]
    parser.add_argument("--cases", nargs="+", default=default, metavar="METHOD:SIDE")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave the results there")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this page")
    arguments = parser.parse_args(given)
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in arguments.cases:
            method, _, side = case.partition(":")
            rows += measure(method, int(side), folder)
            print(*rows[-6:], sep="\n", flush=True)
    lines = markdown_table(("raster", "method", "stage", "seconds", "peak MB"), rows, left=3)
    lines += ["", f"{device_name('cpu')}, commit {commit()}."]
    print("\n".join(["", *lines]))
    if arguments.write:
        PageSection("raster", "benchmarks/raster.py").write(arguments.write, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
