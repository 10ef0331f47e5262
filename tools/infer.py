"""Ask images by words: a folder of images in, masks, boxes, counts, anomaly maps and pictures out.

Thin on purpose: arguments here, the work in `ovseg`. `docs/infer.md` has the details.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ovseg.infer_arguments import build_parser

if TYPE_CHECKING:
    from ovseg.console import Progress
    from ovseg.outputs.palette import Scheme
    from ovseg.text.vocabulary import Vocabulary


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
    if arguments.geo and tasks != ("segment",):
        raise ConfigError("--geo is for --task segment alone: rasters are segmented tile by tile")

    from ovseg import __version__
    from ovseg.batch import BatchPredictor
    from ovseg.console import report
    from ovseg.outputs.run_files import write_class_files, write_run_files
    from ovseg.outputs.writers import build_writers
    from ovseg.raster_runs import RasterOptions, run_rasters, split_rasters
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
    formats = arguments.formats.split(",") + (["html"] if arguments.report else [])
    refined = arguments.refine not in (None, "none") or arguments.reject or arguments.reject_images
    rasters, photos = split_rasters(images, every=arguments.geo) if tasks == ("segment",) else ([], images)
    raster_options = RasterOptions(
        arguments.tile,
        arguments.overlap,
        parse_numbers(arguments.bands, "--bands", int),
        parse_numbers(arguments.percentiles, "--percentiles", float),
        blend=not refined,  # refined outlines are finer than blended probabilities
        threshold=arguments.threshold or 0.0,
    )
    chosen = build_writers(formats, tasks, colors=vocabulary.colors, judged=judged, **style)
    regions = None
    if arguments.regions is not None:
        from ovseg.regions import RegionFolder

        regions = RegionFolder(arguments.regions)
    keep_scores = bool(rasters) or any(each.kind == "scores" for each in chosen)
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
        "raster": raster_options.to_dict(),
    }
    folder = RunFolder(out, settings, versions, overwrite=arguments.overwrite)
    with folder:
        for notice in folder.notices:
            print(notice, file=sys.stderr)
        if shard is not None:
            shard.note(folder, images)
        write_class_files(folder, vocabulary, chosen, scheme)
        progress.start(len(images))
        predict = BatchPredictor(
            predictor,
            vocabulary,
            chosen,
            tasks=tasks,
            templates=templates,
            limits=Limits(max_pixels=arguments.max_pixels) if arguments.max_pixels else None,
            matte=matte,
            regions=regions,
            names=arguments.proposals not in (None, "sam"),
        )
        batch_size = arguments.batch_size or default_batch_size(predictor)
        summary = run(
            predict,
            photos,
            folder,
            batch_size=batch_size,
            readers=arguments.readers,
            on_outcome=progress.note,
            all_images=all_images,
        )
        if rasters:
            run_rasters(
                predict,
                rasters,
                folder,
                formats,
                raster_options,
                scheme=scheme,
                opacity=arguments.opacity,
                batch_size=batch_size,
                on_outcome=progress.note,
                on_tile=progress.tile,
                all_images=all_images,
                summary=summary,
            )
            folder.finish(images)
        files = write_run_files(folder, images, vocabulary, tasks, formats, scheme)
    progress.close()
    report(
        summary,
        len(images),
        out,
        [*dict.fromkeys(each.folder for each in chosen), *files],
        quiet=arguments.quiet,
    )
    return 1 if summary.failed else 0


def parse_numbers(text: str | None, option: str, kind: Any) -> Any:
    """Numbers between commas as a tuple; None stays."""
    from ovseg.errors import ConfigError

    try:
        return None if text is None else tuple(kind(each) for each in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is '{text}': expected numbers between commas") from None


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

    names = (
        "encoder",
        "guide",
        "sam",
        "saliency",
        "convolutions",
        "refine",
        "enrich",
        "weights",
        "attributes",
        "threshold",
        "area_threshold",
    )
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    given |= {"device": arguments.device, "dtype": arguments.dtype, "keep_scores": keep_scores}
    if arguments.compile:
        given["compile"] = True
    if arguments.outlines:
        given["outlines"] = True
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
        refer=arguments.refer,
        reject=arguments.reject,
        reject_images=arguments.reject_images,
        no_tower=arguments.no_tower,
        scenes=arguments.scenes,
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
