"""What examples add to words, by number of examples a class, through `tools/fit.py` and `tools/test.py`.

    python benchmarks/examples.py --write docs/few-shot.md

Examples are scenes of the training split with the mask of one class each; figures are of held-out scenes.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent))
from tool_runs import run

from ovseg.pages import PageSection, commit, markdown_table
from ovseg.scenes import SceneSet

#: Pixels of a class that make a scene an example of it.
LEAST_PIXELS = 150


def main(argv: Sequence[str] | None = None) -> int:
    """Draw examples, fit, measure, print, and where asked write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/maskclip/maskclip_bundled_scenes.py")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4], help="examples of a class")
    parser.add_argument("--seed", type=int, default=0, help="of the training scenes")
    parser.add_argument("--limit", type=int, help="only the first so many test scenes")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this page")
    arguments = parser.parse_args(argv)
    names = SceneSet("test").classes
    words = measure(arguments, None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        draw_examples(Path(folder), names, max(arguments.shots), arguments.seed)
        for called, taught in (("every class has examples", names), ("every second class", names[::2])):
            figures = [fitted(arguments, Path(folder), names, taught, shots) for shots in arguments.shots]
            rows.append([called, *(f"{figure:.1f}" for figure in (words, *figures))])
    lines = [
        *markdown_table(["mIoU (%)", "words alone", *(f"{n} of each" for n in arguments.shots)], rows),
        "",
        f"`{arguments.config}`, {arguments.limit or 64} scenes of the test split, {len(names)} classes; "
        f"examples from training scenes of seed {arguments.seed}. Commit {commit()}.",
    ]
    print("\n".join(lines))
    if arguments.write:
        PageSection("examples", "benchmarks/examples.py").write(arguments.write, lines)
    return 0


def draw_examples(folder: Path, names: Sequence[str], shots: int, seed: int) -> None:
    """`<class>/<n>.png` with `<n>_mask.png`, as many of each class as were asked for."""
    scenes = SceneSet("train", seed, length=100_000)
    missing = dict.fromkeys(names, shots)
    with tqdm(total=sum(missing.values()), desc="examples", unit="image", disable=None) as bar:
        for index in range(len(scenes)):
            scene = scenes[index]
            for label in np.unique(scene.labels).tolist():
                name = scenes.classes[label] if label < len(scenes.classes) else ""
                mask = scene.labels == label
                if missing.get(name, 0) and mask.sum() >= LEAST_PIXELS:
                    number = shots - missing[name]
                    missing[name] -= 1
                    (folder / name).mkdir(exist_ok=True)
                    Image.fromarray(scene.image).save(folder / name / f"{number}.png")
                    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name / f"{number}_mask.png")
                    bar.update()
            if not any(missing.values()):
                return
    raise SystemExit(f"no scene shows {[name for name, count in missing.items() if count]}")


def fitted(
    arguments: argparse.Namespace, folder: Path, names: Sequence[str], taught: Sequence[str], shots: int
) -> float:
    """Teach some of the classes by so many examples each, and measure."""
    with tempfile.TemporaryDirectory() as chosen:
        for name in taught:
            (Path(chosen) / name).mkdir()
            for number in range(shots):
                for file in (f"{number}.png", f"{number}_mask.png"):
                    (Path(chosen) / name / file).symlink_to(folder / name / file)
        vocabulary = f"{chosen}/words.json"
        options = ["--method", arguments.config, "--classes", ", ".join(names), "-o", vocabulary]
        run("tools/fit.py", "--examples", chosen, *options, "--device", "cpu")
        return measure(arguments, vocabulary)


def measure(arguments: argparse.Namespace, vocabulary: str | None) -> float:
    """The mIoU on the test scenes, of the config's words or of a vocabulary."""
    limit = [] if arguments.limit is None else ["--limit", str(arguments.limit)]
    asked = [] if vocabulary is None else ["--cfg-options", f"model.vocabulary={vocabulary}"]
    printed = run("tools/test.py", arguments.config, *limit, *asked)
    return float(re.findall(r"mIoU ([\d.]+)", printed.strip().splitlines()[-1])[0])


if __name__ == "__main__":
    sys.exit(main())
