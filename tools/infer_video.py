"""Ask a video by words: an overlay video and the numbers of each frame out.

Thin on purpose: arguments here, the work in `ovseg`. `docs/outputs.md` has the details.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ovseg.arguments import HelpFormatter, parse_options

EXAMPLES = """\
examples:
  python tools/infer_video.py street.mp4 --classes "car, road, person" -o out/
  python tools/infer_video.py street.mp4 --classes "car, road, person" --stride 5 --smooth 0.7 -o out/
  python tools/infer_video.py flock.mov --task count --classes sheep --stride 10 -o out/

Sound is left out. Exit status: 0 done, 1 the video cannot be read, 2 wrong usage, 130 stopped with Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="infer_video.py",
        description="Name anything in words, and find it in every frame of a video.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a file that FFmpeg reads")
    parser.add_argument(
        "-c", "--classes", required=True, help='words: "car, road", a file, or a shipped list'
    )
    parser.add_argument(
        "-t", "--task", default="segment", help="one of: segment, instances, detect, anomaly, count"
    )
    parser.add_argument("--stride", type=int, default=1, help="every so many frames")
    parser.add_argument("--limit", type=int, help="only the first so many of these")
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="DECAY",
        help="average the score maps over frames, 0 (not) up to below 1 (0.9 looks back about ten frames)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--method", default="sclip", help="a method's name")
    how.add_argument("--encoder", help="an encoder's name, or 'bundled' (default: the best one at hand)")
    how.add_argument("--guide", help="the DINO (or SAM) that a method asks")
    how.add_argument("--sam", help="the SAM that a method or refinement asks")
    how.add_argument("--refine", help="after the scores: pamr, sam, regions, or none (default: the method's)")
    how.add_argument("--templates", default="imagenet80", help="prompt templates: a set's name")
    how.add_argument("--threshold", type=float, help="less probable pixels become background or no class")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    how.add_argument(
        "--dtype", default="float32", choices=("float32", "bf16", "fp16"), help="of the networks"
    )
    how.add_argument("--batch-size", type=int, help="frames at a time (default: 1 on a CPU, else 8)")
    how.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options of the method, and of a task's head",
    )
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder of the results")
    output.add_argument("--opacity", type=float, default=0.55, help="of the overlay's colours, 0 to 1")
    output.add_argument("--no-legend", action="store_true", help="pictures without the list of classes")
    output.add_argument(
        "--colorblind", action="store_true", help="colours that colour-blind people tell apart"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from ovseg.errors import ImageError, OvsegError

    try:
        return _run(arguments)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ImageError) else 2
    except KeyboardInterrupt:
        print(f"\nstopped: the numbers of finished frames are in '{arguments.out}'", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ovseg.answers import check_tasks
    from ovseg.errors import ConfigError
    from ovseg.text.vocabulary import Vocabulary
    from ovseg.video import read_info

    tasks = check_tasks(arguments.task)
    if len(tasks) != 1:
        raise ConfigError(f"--task is '{arguments.task}': a video shows one task")
    if not 0 <= arguments.opacity <= 1:
        raise ConfigError(f"--opacity is {arguments.opacity:g}: expected 0 to 1")
    for name in ("stride", "limit", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}: expected at least 1")
    vocabulary = Vocabulary.parse(arguments.classes)
    info = read_info(arguments.video)  # before the model is loaded
    from ovseg.video_runs import FRAMES, VIDEO, run_video

    predictor = build_predictor(arguments, tasks)
    if not arguments.quiet:
        if predictor.notice:
            print(predictor.notice)
        if info.audio:
            print("the sound of the video is left out")
    default = 1 if predictor.device.type == "cpu" else 8
    with tqdm(unit="frame", disable=arguments.quiet or not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def note(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        summary = run_video(
            predictor,
            vocabulary,
            arguments.video,
            arguments.out,
            task=tasks[0],
            templates=arguments.templates,
            stride=arguments.stride,
            limit=arguments.limit,
            batch_size=arguments.batch_size or default,
            opacity=arguments.opacity,
            legend=not arguments.no_legend,
            scheme="colorblind" if arguments.colorblind else "vivid",
            on_frame=note,
        )
    if not arguments.quiet:
        rate = summary.frames / summary.seconds
        print(f"{summary.frames} frames in {summary.seconds:.1f} s ({rate:.1f} frames/s)")
        print(f"overlay  {arguments.out / VIDEO} ({summary.encoder})\nnumbers  {arguments.out / FRAMES}")
    return 0


def build_predictor(arguments: argparse.Namespace, tasks: Any) -> Any:
    """What answers, as the arguments ask for it."""
    from ovseg import predictors
    from ovseg.errors import ConfigError
    from ovseg.temporal import TemporalAverage

    average = TemporalAverage(arguments.smooth) if arguments.smooth else None
    names = ("encoder", "guide", "sam", "refine", "threshold")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    of_method, of_heads = predictors.split_options(parse_options(arguments.opts))
    predictor = predictors.build_predictor(
        arguments.method,
        tasks,
        heads=of_heads,
        device=arguments.device,
        dtype=arguments.dtype,
        **given,
        **of_method,
    )
    if average is not None:
        if not hasattr(predictor, "scorer") or tasks == ("anomaly",):
            raise ConfigError("--smooth averages the score maps of words: this task has none")
        predictor.scorer.refine.insert(0, average)
    return predictor


if __name__ == "__main__":
    sys.exit(main())
