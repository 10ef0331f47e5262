"""Ask images by words: a folder of images in, masks, boxes, counts, anomaly maps and pictures out.

Thin on purpose: arguments here, the work in `ovseg`. `docs/infer.md` has the details.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovseg.console import Progress
    from ovseg.outputs.palette import Scheme
    from ovseg.text.vocabulary import Vocabulary

EXAMPLES = """\
examples:
  python tools/infer.py photos/ --classes "cat, dog, sofa, grass" -o out/
  python tools/infer.py photos/ --task segment,count --classes "cat, dog" --formats overlay,coco -o out/
  python tools/infer.py photos/ --task count --classes "sheep" --cache features/ -o out/
  python tools/infer.py parts/ --task anomaly --good good_parts/ -o out/
  python tools/infer.py parts/ --task anomaly --method winclip --classes bottle -o out/
  python tools/infer.py photos/ --task detect --classes "cat, dog" --proposals sam --crops masked -o out/
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
    from ovseg.arguments import HelpFormatter

    parser = argparse.ArgumentParser(
        prog="infer.py",
        description="Name anything in words: find it in images, box it, count it, see what is wrong with it.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="images: files, folders (recursive), globs, or .txt lists"
    )
    what = parser.add_argument_group("what to find")
    what.add_argument(
        "-t",
        "--task",
        default="segment",
        help="of: segment, instances, detect, anomaly, count; several as segment,count",
    )
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
        "--truncate", action="store_true", help="cut prompts that are longer than the model can read"
    )
    what.add_argument(
        "--threshold", type=float, help="less probable pixels become background or no class (default: 0)"
    )
    what.add_argument(
        "--area-threshold", type=float, help="drop classes that hold at most this share (default: 0)"
    )
    what.add_argument(
        "--reject",
        metavar="RULE:LEAST",
        help="pixels that fit none of the words become void: msp, maxlogit, energy or mcm, as maxlogit:9",
    )
    what.add_argument(
        "--reject-images", metavar="RULE:LEAST", help="the same for whole images, by their class token"
    )
    boxes = parser.add_argument_group("detection by proposals")
    boxes.add_argument(
        "--proposals",
        metavar="sam|FILE",
        help="name regions instead of pixels: SAM's masks, or a COCO file's",
    )
    boxes.add_argument(
        "--crops", choices=("masked", "blurred"), help="let CLIP look at a picture of each region, too"
    )
    wrong = parser.add_argument_group("anomaly")
    wrong.add_argument(
        "--anomaly",
        metavar="METHOD",
        help="words (default), winclip, anovl, anomalyclip, or patch-memory (default with --good)",
    )
    wrong.add_argument(
        "--good",
        type=Path,
        metavar="DIR",
        help="images without a fault to compare with; they give a threshold",
    )
    wrong.add_argument("--shots", type=int, help="only so many of the good images")
    wrong.add_argument(
        "--anomaly-threshold", metavar="FILE|NUMBER", help="from which score on something is anomalous"
    )
    wrong.add_argument(
        "--prompts", metavar="FILE", help="AnomalyCLIP's learned prompts, or a set of state prompts"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--method", default="sclip", help="a method's name, or an OpenMMLab config file (.py)")
    how.add_argument("--encoder", help="an encoder's name, or 'bundled' (default: the best one at hand)")
    how.add_argument(
        "--weights",
        type=Path,
        help="a local weights file instead of the encoder's own; the checkpoint of a config that was trained",
    )
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
    how.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep the encoded images: other words and tasks on the same images then load no image tower",
    )
    how.add_argument(
        "--token-merging",
        type=float,
        metavar="KEEP",
        help="merge alike tokens, so that each block leaves this share: faster, a little less accurate",
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
        help="options of the method, as short_side=448 (of a config: model.method.short_side=448), and of a "
        "task's head, as detect.min_score=0.3",
    )
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder of the run")
    output.add_argument(
        "--formats", default="labels,overlay", help="of: labels, overlay, scores, coco, panoptic, yolo"
    )
    output.add_argument(
        "--shard", metavar="I/N", help="only part I of N, into a folder of its own; merge_runs.py joins them"
    )
    output.add_argument(
        "--launcher",
        choices=("pytorch", "slurm"),
        help="a shard for each process of torchrun or srun",
    )
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
    from ovseg.answers import check_tasks
    from ovseg.arguments import parse_color, parse_options
    from ovseg.errors import ConfigError
    from ovseg.images import Limits
    from ovseg.inputs import find_images

    if not arguments.inputs:
        raise ConfigError(
            "no input: name images, folders, globs or a list, as in: infer.py photos/ -c 'cat, dog'"
        )
    tasks = check_tasks(arguments.task)
    if arguments.classes is None and tasks == ("anomaly",):
        arguments.classes = "object"
    if arguments.classes is None and not is_config(arguments.method):
        raise ConfigError("no classes: say what to find, as in --classes 'cat, dog', or give a file of words")
    for name in ("opacity", "threshold", "area_threshold"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}: expected 0 to 1")
    for name in ("batch_size", "limit", "max_pixels", "readers", "shots"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}: expected at least 1"
            )
    options = parse_options(arguments.opts, lower_case=not is_config(arguments.method))
    matte = parse_color(arguments.matte)
    all_images = find_images(arguments.inputs)[: arguments.limit]
    shard = shard_of(arguments)
    images = all_images if shard is None else shard.images(all_images)
    out = arguments.out if shard is None else shard.folder(arguments.out)

    from ovseg import __version__
    from ovseg.batch import BatchPredictor
    from ovseg.console import report
    from ovseg.outputs.run_files import write_class_files, write_run_files
    from ovseg.outputs.writers import build_writers
    from ovseg.run_folder import RunFolder
    from ovseg.runs import run

    scheme: Scheme = "colorblind" if arguments.colorblind else "vivid"
    style: dict[str, Any] = {
        "opacity": arguments.opacity,
        "legend": not arguments.no_legend,
        "scheme": scheme,
    }
    vocabulary, templates = words_of(arguments)
    judged = arguments.good is not None or arguments.anomaly_threshold is not None
    formats = arguments.formats.split(",")
    chosen = build_writers(formats, tasks, colors=vocabulary.colors, judged=judged, **style)
    regions = None
    if arguments.regions is not None:
        from ovseg.regions import RegionFolder

        regions = RegionFolder(arguments.regions)
    keep_scores = any(each.kind == "scores" for each in chosen)
    predictor = build_predictor(arguments, tasks, options, keep_scores=keep_scores)
    if predictor.notice and not arguments.quiet:
        print(predictor.notice)
    predictor.bank(vocabulary, templates)  # words that cannot be encoded: an error before the folder is made
    description = dict(predictor.describe())
    versions = {"ovseg": __version__, **description.pop("versions", {})}
    settings = {
        **description,
        "tasks": list(tasks),
        "vocabulary": vocabulary.to_dict(),
        "templates": templates,
        "overlay": style,
        "regions": None if arguments.regions is None else str(arguments.regions),
        "matte": list(matte),
    }
    folder = RunFolder(out, settings, versions, overwrite=arguments.overwrite)
    with folder:
        for notice in folder.notices:
            print(notice, file=sys.stderr)
        if shard is not None:
            shard.note(folder, images)
        write_class_files(folder, vocabulary, chosen, scheme)
        progress.start(len(images))
        summary = run(
            BatchPredictor(
                predictor,
                vocabulary,
                chosen,
                tasks=tasks,
                templates=templates,
                limits=Limits(max_pixels=arguments.max_pixels) if arguments.max_pixels else None,
                matte=matte,
                regions=regions,
                names=arguments.proposals not in (None, "sam"),
            ),
            images,
            folder,
            batch_size=arguments.batch_size or default_batch_size(predictor),
            readers=arguments.readers,
            on_outcome=progress.note,
            all_images=all_images,
        )
        files = write_run_files(folder, images, vocabulary, tasks, formats)
    progress.close()
    report(
        summary,
        len(images),
        out,
        [*dict.fromkeys(each.folder for each in chosen), *files],
        quiet=arguments.quiet,
    )
    return 1 if summary.failed else 0


def shard_of(arguments: argparse.Namespace) -> Any:
    """The part of the run that this process does; None: all of it. Sets the GPU of a launched process."""
    from ovseg import shards
    from ovseg.errors import ConfigError

    if arguments.shard is not None and arguments.launcher is not None:
        raise ConfigError("--shard and --launcher both say which part this process does: give one of them")
    if arguments.shard is not None:
        return shards.parse_shard(arguments.shard)
    if arguments.launcher is None:
        return None
    shard, local = shards.launched(arguments.launcher)
    if arguments.device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            arguments.device = f"cuda:{local % torch.cuda.device_count()}"
    return shard


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


def build_predictor(
    arguments: argparse.Namespace, tasks: Any, options: dict[str, Any], *, keep_scores: bool
) -> Any:
    """What answers, as the arguments ask for it. Imports torch, so it comes after all cheap checks."""
    from ovseg import predictors

    names = ("encoder", "guide", "sam", "saliency", "convolutions", "refine", "enrich", "weights")
    names += ("threshold", "area_threshold")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    given |= {"device": arguments.device, "dtype": arguments.dtype, "keep_scores": keep_scores}
    if arguments.compile:
        given["compile"] = True
    if arguments.token_merging is not None:
        given["merging"] = arguments.token_merging
    if arguments.truncate:
        given["on_long"] = "truncate"
    if arguments.cache is not None:
        given["feature_cache"] = arguments.cache
    if arguments.regions is not None and "sam" not in given and regions_replace_sam(arguments):
        given["sam"] = "none"
    of_method, of_heads = predictors.split_options(options)
    only_anomaly = tasks == ("anomaly",) and (arguments.good or arguments.anomaly not in (None, "words"))
    of_anomaly = {} if arguments.prompts is None else {"prompts": arguments.prompts}
    from_config = None
    if is_config(arguments.method):
        from ovseg.mm.build import inferencer_from_config, load_config

        def from_config(method: str, **others: Any) -> Any:
            heads = ("threshold", "area_threshold", "keep_scores")
            head = {f"model.head.{key}": others.pop(key) for key in heads if key in others}
            return inferencer_from_config(load_config(method, options | head), **others)

    elif only_anomaly or arguments.method in ("winclip", "anovl", "anomalyclip", "patch-memory"):
        of_anomaly |= of_method
    else:
        given |= of_method
    return predictors.build_predictor(
        arguments.method,
        tasks,
        anomaly=arguments.anomaly,
        anomaly_options=of_anomaly,
        good=arguments.good,
        shots=arguments.shots,
        anomaly_threshold=arguments.anomaly_threshold,
        heads=of_heads,
        proposals=arguments.proposals,
        crops=arguments.crops,
        reject=arguments.reject,
        reject_images=arguments.reject_images,
        from_config=from_config,
        **given,
    )


def regions_replace_sam(arguments: argparse.Namespace) -> bool:
    """Whether region files spare the run a SAM, because nothing else would ask it."""
    from ovseg.methods import parts_of, required_parts

    config, steps = is_config(arguments.method), (arguments.refine or "").split(",")
    takes, needs = ((), ()) if config else (parts_of(arguments.method), required_parts(arguments.method))
    return ("sam" in takes or "regions" in steps) and "sam" not in {*steps, *needs}


def is_config(method: str) -> bool:
    """Whether `--method` is an OpenMMLab config file."""
    return method.endswith(".py")


def default_batch_size(predictor: Any) -> int:
    """1 on a CPU, where batches gain nothing, and 8 elsewhere."""
    return 1 if predictor.device.type == "cpu" else 8


if __name__ == "__main__":
    sys.exit(main())
