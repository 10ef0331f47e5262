"""Measure how good a method is: an OpenMMLab config on its dataset, or methods by name on held-out scenes.

Thin on purpose: arguments and tables here, the work in `ovseg.mm`.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovseg.mm.scenes_benchmark import SceneScores

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """\
on a dataset (its files as in docs/datasets.md; training-free methods need no checkpoint):
  python tools/test.py configs/sclip/sclip_vitb16_voc21.py
  python tools/test.py configs/naclip/naclip_vitb16_ade20k.py --limit 50 --show-dir out/pictures
  python tools/test.py configs/sclip/sclip_vitb16_voc21.py --cfg-options model.method.temperature=50
  torchrun --nproc-per-node 4 tools/test.py configs/clip/clip_vitb16_voc20.py --launcher pytorch

on scenes, drawn on the fly, no files needed (settings: configs/<method>/<method>_bundled_scenes.py):
  python tools/test.py clip maskclip sclip clearclip naclip
  python tools/test.py naclip --split val --seeds 0 --cfg-options model.method.stride=64     (tune on val)
  python tools/test.py naclip --refine none pamr sam                         (one row for each)
  python tools/test.py sclip --split compositions --per-class
  python tools/test.py --ladder --keep out/ladder --write docs/results.md --picture docs/images/ladder.jpg
  python tools/test.py --heads --keep out/heads --write docs/results.md --picture docs/images/heads.jpg

exit status: 0 measured, 2 wrong usage or missing files, 130 stopped with Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="test.py",
        description="Measure mIoU: of a config on its dataset, or of methods by name on held-out scenes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="CONFIG [CKPT] | METHOD",
        help="a config (.py) and its checkpoint, or methods (with --ladder: default all)",
    )
    both = parser.add_argument_group("both")
    both.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, as model.method.temperature=50 or model.encoder=clip_vitb16_laion2b",
    )
    both.add_argument(
        "--limit", type=int, help="only the first so many images of the dataset, or of each seed"
    )
    config = parser.add_argument_group("a config")
    config.add_argument("--work-dir", type=Path, help="folder for logs (default: work_dirs/<config>)")
    config.add_argument(
        "--out", type=Path, help="folder for predicted labels, as PNG in the dataset's numbers"
    )
    config.add_argument("--show-dir", type=Path, help="folder for pictures of the results")
    config.add_argument("--launcher", default="none", choices=("none", "pytorch", "slurm", "mpi"))
    config.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    scenes = parser.add_argument_group("methods on scenes")
    scenes.add_argument(
        "--split",
        "--scenes-split",
        default="test",
        help="test, val, pairs, compositions, unseen ... (default: test)",
    )
    scenes.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="sets of scenes (default: 0 1 2)"
    )
    scenes.add_argument(
        "--num-scenes", type=int, help="scenes of each seed (default: 64; with --heads 16, and 8 a product)"
    )
    scenes.add_argument(
        "--refine",
        nargs="+",
        metavar="STEPS",
        help="refinements, a row for each: own (the method's, the default), none, pamr, sam, pamr,sam ...",
    )
    scenes.add_argument(
        "--ladder",
        action="store_true",
        help="all methods, plain and refined (none, pamr, sam), each with its gain over the row below",
    )
    scenes.add_argument(
        "--heads",
        action="store_true",
        help="detection, instances, counting, anomaly and rejection, each against a trivial answer",
    )
    scenes.add_argument(
        "--regions", action="store_true", help="with --heads: also classify SAM's automatic masks (slow)"
    )
    scenes.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="save every row there, and do not measure it again"
    )
    scenes.add_argument("--picture", type=Path, metavar="FILE", help="draw one scene through all rows")
    scenes.add_argument(
        "--picture-scene", type=int, default=0, metavar="N", help="which of the first seed (default: 0)"
    )
    scenes.add_argument("--encoder", help="instead of the bundled one")
    scenes.add_argument("--weights", help="a local weights file")
    scenes.add_argument("--short-side", type=int, help="resize scenes to this short side, for every method")
    scenes.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    scenes.add_argument("--dtype", default="float32", choices=("float32", "bf16", "fp16"))
    scenes.add_argument("--per-class", action="store_true", help="also the IoU of every class")
    scenes.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this Markdown file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(given)
    from ovseg.errors import OvsegError

    try:
        from ovseg.arguments import parse_options

        options = parse_options(arguments.cfg_options, "--cfg-options", lower_case=False)
        if any(each.endswith(".py") for each in arguments.what):
            return test_config(arguments, options)
        if arguments.heads:
            return test_heads(arguments, given)
        return test_methods(arguments, options, given)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: nothing was measured", file=sys.stderr)
        return 130


def test_config(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    """A config through mmengine's Runner."""
    from ovseg.errors import ConfigError
    from ovseg.mm import load_config
    from ovseg.mm.runner import prepare, run_test

    path, *rest = arguments.what
    if not path.endswith(".py") or len(rest) > 1 or any(each.endswith(".py") for each in rest):
        raise ConfigError(
            f"expected one config and at most one checkpoint, or methods; got {' '.join(arguments.what)}"
        )
    if arguments.write:
        raise ConfigError("--write is for methods on scenes, not for a config")
    os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    config = prepare(
        load_config(path, options),
        work_dir=arguments.work_dir or Path("work_dirs") / Path(path).stem,
        out=arguments.out,
        show_dir=arguments.show_dir,
        limit=arguments.limit,
        launcher=arguments.launcher,
    )
    metrics = run_test(config, rest[0] if rest else None)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{Path(path).stem}: " + "  ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    return 0


def test_methods(arguments: argparse.Namespace, options: dict[str, Any], argv: list[str]) -> int:
    """Methods by name on scenes."""
    from ovseg.errors import ConfigError, unknown_name
    from ovseg.methods import METHODS
    from ovseg.mm import ladder, load_config
    from ovseg.mm.scenes_benchmark import score_on_scenes

    methods = list(dict.fromkeys(arguments.what))
    for method in methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    if arguments.ladder:
        methods = ladder.in_order(methods or METHODS)
    elif not methods:
        raise ConfigError("name a config or methods, or ask for all with --ladder")
    refinements = arguments.refine or (ladder.REFINEMENTS if arguments.ladder else ["own"])
    place = ladder.LADDER if arguments.ladder else ladder.SCENES
    if arguments.write:
        place.around(arguments.write)  # before the work
    if arguments.short_side is not None:
        options["model.method.short_side"] = arguments.short_side
    number = arguments.num_scenes if arguments.limit is None else arguments.limit
    found: list[SceneScores] = []
    for method, refine in product(methods, refinements):
        config = load_config(ROOT / "configs" / method / f"{method}_bundled_scenes.py", options)
        scores = score_on_scenes(
            config,
            split=arguments.split,
            seeds=arguments.seeds,
            num_scenes=64 if number is None else number,
            refine=None if refine == "own" else refine,
            example=arguments.picture_scene if arguments.picture else None,
            keep=arguments.keep,
            encoder=arguments.encoder,
            weights=arguments.weights,
            device=arguments.device,
            dtype=arguments.dtype,
        )
        if scores.notice and not found:
            print(scores.notice, file=sys.stderr)
        found.append(scores)
        print(f"{scores.name}: mIoU {ladder.percent(scores.mean_iou)}", file=sys.stderr)
    print("\n".join(ladder.ladder_table(found) if arguments.ladder else ladder.table(found)))
    if arguments.per_class:
        print("\n" + "\n".join(ladder.class_table(found)))
    if arguments.write:
        place.write(arguments.write, ladder.section(found, argv, ladder=arguments.ladder))
        print(f"\nwritten to {arguments.write}")
    if arguments.picture:
        draw(config, found, arguments)
    return 0


def test_heads(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Every head on scenes of its own kind, against a trivial answer."""
    from ovseg.benchmark import page
    from ovseg.benchmark.run import measure, settings_of
    from ovseg.errors import ConfigError

    if arguments.what or arguments.ladder:
        raise ConfigError("--heads takes no methods: it measures the heads on one method's score map")
    if arguments.write:
        page.HEADS.around(arguments.write)  # before the work
    number = arguments.num_scenes if arguments.limit is None else arguments.limit
    numbers = {} if number is None else {"num_scenes": number, "num_inspected": number}
    settings = settings_of(seeds=arguments.seeds, regions=arguments.regions, **numbers)
    lines = page.section(measure(settings, keep=arguments.keep), settings, argv)
    print("\n".join(lines))
    if arguments.write:
        page.HEADS.write(arguments.write, lines)
        print(f"\nwritten to {arguments.write}")
    if arguments.picture:
        from ovseg.benchmark.picture import heads_picture
        from ovseg.mm.ladder_picture import save_picture

        save_picture(heads_picture(arguments.seeds[0], scene=arguments.picture_scene), arguments.picture)
        print(f"drawn: {arguments.picture}")
    return 0


def draw(config: Any, found: list[SceneScores], arguments: argparse.Namespace) -> None:
    """One scene through all rows."""
    from ovseg.mm.ladder_picture import ladder_picture, save_picture
    from ovseg.mm.scenes_benchmark import scene_sets

    (scenes,) = scene_sets(config, split=arguments.split, seeds=arguments.seeds[:1])
    scene = scenes.render(arguments.picture_scene, scenes.size_hw)
    save_picture(ladder_picture(scene, found), arguments.picture)
    print(f"drawn: {arguments.picture}")


if __name__ == "__main__":
    sys.exit(main())
