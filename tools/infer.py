"""Segment images by words: a folder of images in, labelled masks and pictures out.

Thin on purpose: arguments here, the work in `ovseg`. `docs/infer.md` has the details.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovseg.console import Progress
    from ovseg.palette import Scheme
    from ovseg.text.vocabulary import Vocabulary

EXAMPLES = """\
examples:
  python tools/infer.py photos/ --classes "cat, dog, sofa, grass" -o out/
  python tools/infer.py photos/ --classes "cat, dog" --method sclip --encoder clip_vitb16_openai -o out/
  python tools/infer.py 'photos/**/*.jpg' --classes words.yaml --threshold 0.3 --formats labels,scores -o out/
  python tools/infer.py photos/ --method configs/sclip/sclip_vitb16_voc21.py -o out/
  python tools/infer.py images.txt --classes ade20k --device cuda --dtype fp16 --batch-size 16 -o out/
  python tools/infer.py photos/ --classes "cat, dog" --method proxyclip --guide dinov2_vitb14_reg -o out/
  python tools/infer.py photos/ --classes "cat, dog" --method naclip --refine pamr,sam -o out/
  python tools/infer.py demo/images --classes demo/classes.txt --encoder bundled -o out/demo

exit status: 0 all images done, 1 some failed (see errors.jsonl), 2 wrong usage, 130 stopped with Ctrl-C.
The same command again finishes a stopped run and tries failed images once more.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="infer.py",
        description="Segment images by words.",
        epilog=EXAMPLES,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="images: files, folders (recursive), globs, or .txt lists"
    )
    what = parser.add_argument_group("what to find")
    what.add_argument(
        "-c",
        "--classes",
        help='words: "cat, dog", a .txt, .json or .yaml file, or the name of a shipped list',
    )
    what.add_argument(
        "--templates",
        help="prompt templates: a set's name, or your own as 'a {}|a photo of a {}' (default: imagenet80)",
    )
    what.add_argument(
        "--threshold", type=float, help="less probable pixels become background or no class (default: 0)"
    )
    what.add_argument(
        "--area-threshold", type=float, help="drop classes that hold at most this share (default: 0)"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--method", default="sclip", help="a method's name, or an OpenMMLab config file (.py)")
    how.add_argument("--encoder", help="an encoder's name, or 'bundled' (default: the best one at hand)")
    how.add_argument("--weights", type=Path, help="a local weights file instead of the encoder's own")
    how.add_argument(
        "--guide",
        help="the DINO (or SAM) that a method asks, such as dino_vitb8, dinov2_vitb14_reg or name=FILE",
    )
    how.add_argument("--sam", help="the SAM that a method or refinement asks: sam_vitb, sam_vith, name=FILE")
    how.add_argument("--saliency", help="FOUND's weights, for clip-dinoiser-teacher")
    how.add_argument("--convolutions", help="CLIP-DINOiser's weights, for clip-dinoiser")
    how.add_argument(
        "--refine",
        help="after the scores: pamr, sam, regions, several as pamr,sam, or none (default: the method's)",
    )
    how.add_argument(
        "--regions",
        type=Path,
        metavar="DIR",
        help="regions by image name (.png, .npy, .npz) for corrclip and --refine regions, instead of SAM's",
    )
    how.add_argument(
        "--enrich",
        type=Path,
        metavar="FILE",
        help="YAML of sentences by class, which enrich the words (ExCEL)",
    )
    how.add_argument("--compile", action="store_true", help="let torch compile the networks' blocks")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    how.add_argument(
        "--dtype", default="float32", choices=("float32", "bf16", "fp16"), help="of the networks"
    )
    how.add_argument(
        "--batch-size",
        type=int,
        help="images at a time; results do not depend on it (default: 1 on a CPU, else 8)",
    )
    how.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options of the method, as short_side=448 (of a config: model.method.short_side=448)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder of the run")
    output.add_argument("--formats", default="labels,overlay", help="of: labels, overlay, scores")
    output.add_argument("--opacity", type=float, default=0.55, help="of the overlay's colours, 0 to 1")
    output.add_argument("--no-legend", action="store_true", help="overlays without the legend")
    output.add_argument(
        "--colorblind", action="store_true", help="colours that colour-blind people tell apart"
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace the results of a run with other settings"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="print failures only")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--limit", type=int, help="only the first so many images")
    reading.add_argument("--max-pixels", type=int, help="refuse larger images (default: 89,478,485)")
    reading.add_argument("--matte", default="#ffffff", help="the colour behind transparent pixels")
    reading.add_argument("--readers", type=int, default=2, help="threads that read files")
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(110, shutil.get_terminal_size().columns))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = any(action.default is each for each in (None, False)) or action.default == []
        quiet = unset or "default" in (action.help or "")
        return action.help if quiet else super()._get_help_string(action)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from ovseg.console import Progress
    from ovseg.errors import OvsegError

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    progress = Progress(arguments.quiet)
    try:
        return _run(arguments, progress)
    except OvsegError as error:
        progress.close()
        print(f"error: {error}", file=sys.stderr)
        return 1 if progress.started and not is_usage_error(error) else 2
    except KeyboardInterrupt:
        progress.close()
        if progress.started:
            print(
                f"\nstopped: {progress.finished} of {progress.total} images are done and kept in "
                f"'{arguments.out}'. The same command goes on from there.",
                file=sys.stderr,
            )
        else:
            print("\nstopped before the first image", file=sys.stderr)
        return 130


def is_usage_error(error: Exception) -> bool:
    """Whether another command line would help."""
    from ovseg.errors import CheckpointError, ConfigError, MissingDependencyError, VocabularyError

    return isinstance(error, ConfigError | VocabularyError | CheckpointError | MissingDependencyError)


def _run(arguments: argparse.Namespace, progress: Progress) -> int:
    from ovseg.errors import ConfigError
    from ovseg.images import Limits
    from ovseg.inputs import find_images

    if not arguments.inputs:
        raise ConfigError(
            "no input: name images, folders, globs or a list, as in: infer.py photos/ -c 'cat, dog'"
        )
    if arguments.classes is None and not is_config(arguments.method):
        raise ConfigError("no classes: say what to find, as in --classes 'cat, dog', or give a file of words")
    for name in ("opacity", "threshold", "area_threshold"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}: expected 0 to 1")
    for name in ("batch_size", "limit", "max_pixels", "readers"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}: expected at least 1"
            )
    options = parse_options(arguments.opts)
    matte = parse_color(arguments.matte)
    images = find_images(arguments.inputs)[: arguments.limit]

    from ovseg import __version__, writers
    from ovseg.console import report
    from ovseg.results import void_label
    from ovseg.run_folder import CLASSES, RunFolder
    from ovseg.runs import run

    scheme: Scheme = "colorblind" if arguments.colorblind else "vivid"
    style: dict[str, Any] = {
        "opacity": arguments.opacity,
        "legend": not arguments.no_legend,
        "scheme": scheme,
    }
    chosen = writers.build_writers(arguments.formats.split(","), **style)
    vocabulary, templates = words_of(arguments)
    regions = None
    if arguments.regions is not None:
        from ovseg.regions import RegionFolder

        regions = RegionFolder(arguments.regions)
    segmenter = build_segmenter(arguments, options, keep_scores=any(each.kind == "scores" for each in chosen))
    if segmenter.notice and not arguments.quiet:
        print(segmenter.notice)
    segmenter.bank(vocabulary, templates)  # words that cannot be encoded: an error before the folder is made
    description = dict(segmenter.describe())
    versions = {"ovseg": __version__, **description.pop("versions", {})}
    settings = {
        **description,
        "vocabulary": vocabulary.to_dict(),
        "templates": templates,
        "overlay": style,
        "regions": None if arguments.regions is None else str(arguments.regions),
        "matte": list(matte),
    }
    folder = RunFolder(arguments.out, settings, versions, overwrite=arguments.overwrite)
    with folder:
        for notice in folder.notices:
            print(notice, file=sys.stderr)
        folder.write(
            CLASSES,
            writers.class_table(
                vocabulary.names,
                void_label(len(vocabulary.names)),
                vocabulary.background,
                vocabulary.colors,
                scheme,
            ),
        )
        progress.start(len(images))
        summary = run(
            segmenter,
            images,
            vocabulary,
            folder,
            chosen,
            templates=templates,
            batch_size=arguments.batch_size or default_batch_size(segmenter),
            limits=Limits(max_pixels=arguments.max_pixels) if arguments.max_pixels else None,
            matte=matte,
            readers=arguments.readers,
            on_outcome=progress.note,
            regions=regions,
        )
    progress.close()
    report(summary, len(images), arguments.out, [each.folder for each in chosen], quiet=arguments.quiet)
    return 1 if summary.failed else 0


def words_of(arguments: argparse.Namespace) -> tuple[Vocabulary, Any]:
    """Vocabulary and prompt templates: as given, else the config's."""
    from ovseg.text.vocabulary import Vocabulary

    templates: Any = arguments.templates or "imagenet80"
    if "{}" in templates:
        templates = templates.split("|")
    if arguments.classes is not None:
        vocabulary = Vocabulary.parse(arguments.classes)
    if is_config(arguments.method):
        from ovseg.errors import ConfigError
        from ovseg.mm.build import templates_of, vocabulary_of

        if arguments.templates is None:
            templates = templates_of(arguments.method)
        if arguments.classes is None:
            named = vocabulary_of(arguments.method)
            if named is None:
                raise ConfigError(f"no classes, and {arguments.method} names none: say --classes 'cat, dog'")
            vocabulary = named
    return vocabulary, templates


def build_segmenter(arguments: argparse.Namespace, options: dict[str, Any], *, keep_scores: bool) -> Any:
    """The inferencer that the arguments ask for. Imports torch, so it comes after all cheap checks."""
    head = {"threshold": arguments.threshold, "area_threshold": arguments.area_threshold}
    head = {key: value for key, value in head.items() if value is not None} | {"keep_scores": keep_scores}
    common = {"device": arguments.device, "dtype": arguments.dtype, "encoder": arguments.encoder}
    parts = {
        name: getattr(arguments, name) for name in ("guide", "sam", "saliency", "convolutions", "refine")
    }
    common |= {name: value for name, value in parts.items() if value is not None}
    if arguments.compile:
        common["compile"] = True
    if arguments.regions is not None and "sam" not in common and regions_replace_sam(arguments):
        common["sam"] = "none"
    if is_config(arguments.method):
        from ovseg.mm.build import inferencer_from_config, load_config

        overrides = options | {f"model.head.{key}": value for key, value in head.items()}
        weights = None if arguments.weights is None else str(arguments.weights)
        return inferencer_from_config(load_config(arguments.method, overrides), weights=weights, **common)
    from ovseg.inferencer import Inferencer

    return Inferencer(arguments.method, weights=arguments.weights, **common, **head, **options)


def regions_replace_sam(arguments: argparse.Namespace) -> bool:
    """Whether region files spare the run a SAM, because nothing else would ask it."""
    from ovseg.methods import parts_of, required_parts

    config, steps = is_config(arguments.method), (arguments.refine or "").split(",")
    takes, needs = ((), ()) if config else (parts_of(arguments.method), required_parts(arguments.method))
    return ("sam" in takes or "regions" in steps) and "sam" not in {*steps, *needs}


def is_config(method: str) -> bool:
    """Whether `--method` is an OpenMMLab config file."""
    return method.endswith(".py")


def default_batch_size(segmenter: Any) -> int:
    """1 on a CPU, where batches gain nothing, and 8 elsewhere."""
    return 1 if segmenter.scorer.device.type == "cpu" else 8


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` with Python values; what is no Python value is text."""
    from ovseg.errors import ConfigError

    names = {"true": True, "false": False, "none": None}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise ConfigError(f"--opts got '{pair}': expected KEY=VALUE, as in short_side=448")
        try:
            options[key] = names[value.lower()] if value.lower() in names else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def parse_color(text: str) -> tuple[int, int, int]:
    """`#rrggbb` as numbers."""
    from ovseg.errors import ConfigError

    if not re.fullmatch("#?[0-9a-fA-F]{6}", text):
        raise ConfigError(f"--matte is '{text}': expected a colour such as #ffffff")
    digits = text.removeprefix("#")
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


if __name__ == "__main__":
    sys.exit(main())
