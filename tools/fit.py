"""Teach classes by examples, without training: images with masks in, a vocabulary with visual prototypes out.

Thin on purpose: arguments here, the work in `ovseg.training.few_shot`. `docs/few-shot.md` has the details.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples, either a folder for each class, with a mask beside each image (what is not 0 is the class):
  examples/dog/rex.jpg  examples/dog/rex_mask.png  examples/cat/tom.jpg  examples/cat/tom_mask.png
or label maps, whose numbers are the classes of a vocabulary (255 is not known):
  examples/images/1.jpg  examples/labels/1.png  examples/classes.txt

  python tools/fit.py --examples examples/ -o words.json
  python tools/fit.py --examples examples/ --classes voc20 --method naclip --encoder clip_vitb16_openai \\
      -o words.safetensors
  python tools/infer.py photos/ --classes words.json -o out/

The file belongs to the method and the encoder that it was made with: infer.py is given the same ones. Classes
of --classes without examples stay as their words make them, and words can be added to a .json by hand.

exit status: 0 written, 1 an image could not be read, 2 wrong usage or missing files.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fit.py",
        description="Teach classes by a few examples: a vocabulary with visual prototypes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=Path, required=True, metavar="DIR", help="images with masks")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="a .json or .safetensors vocabulary"
    )
    parser.add_argument(
        "-c", "--classes", help="the whole vocabulary (default: the folders' names, or DIR/classes.txt)"
    )
    parser.add_argument("--templates", default="imagenet80", help="prompt templates, as infer.py takes them")
    how = parser.add_argument_group("how, the same as for infer.py afterwards")
    how.add_argument("--method", default="sclip", help="a method's name, or an OpenMMLab config file (.py)")
    how.add_argument("--encoder", help="an encoder's name, or 'bundled' (default: the best one at hand)")
    how.add_argument("--weights", type=Path, help="a local weights file instead of the encoder's own")
    for part in ("guide", "sam", "saliency", "convolutions"):
        how.add_argument(f"--{part}", help=f"the {part} that the method asks")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    how.add_argument("--dtype", default="float32", help="float32, bf16 or fp16")
    how.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="options of the method")
    fit = parser.add_argument_group("fitting")
    fit.add_argument(
        "--strength",
        type=float,
        help="of the examples against the words (default: chosen by leaving images out in turn)",
    )
    fit.add_argument(
        "--least-share", type=float, default=0.8, help="of a patch that its class must fill (default: 0.8)"
    )
    fit.add_argument(
        "--most-patches", type=int, default=100, help="per class and image, evenly spread (default: 100)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print failures only")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from ovseg.errors import ImageError, OvsegError

    try:
        run(arguments)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ImageError) else 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Reads, fits, writes."""
    from dataclasses import replace

    from ovseg.errors import ConfigError
    from ovseg.text.vocabulary import Vocabulary
    from ovseg.training.examples import find_examples

    if arguments.out.suffix not in (".json", ".safetensors"):
        raise ConfigError(f"-o {arguments.out}: a vocabulary is written as .json or .safetensors")
    if not 0 < arguments.least_share <= 1 or arguments.most_patches < 1:
        raise ConfigError("--least-share is above 0 and at most 1, --most-patches at least 1")
    if arguments.strength is not None and not 0 <= arguments.strength < float("inf"):
        raise ConfigError(f"--strength is at least 0, got {arguments.strength}")
    given = None if arguments.classes is None else Vocabulary.parse(arguments.classes)
    vocabulary, examples = find_examples(arguments.examples, given)
    vocabulary = replace(vocabulary, prototypes=None)  # those of before are replaced

    from tqdm import tqdm

    from ovseg.training.few_shot import cells_of, fit_prototypes

    inferencer = build(arguments)
    if inferencer.notice and not arguments.quiet:
        print(inferencer.notice)
    templates = arguments.templates.split("|") if "{}" in arguments.templates else arguments.templates
    _, bank = inferencer.bank(vocabulary, templates)
    quiet = arguments.quiet or not sys.stderr.isatty()
    cells = [
        cells_of(
            inferencer.scorer,
            bank,
            *example.read(),
            least_share=arguments.least_share,
            most_cells=arguments.most_patches,
        )
        for example in tqdm(examples, desc="examples", unit="image", disable=quiet)
    ]
    say = (lambda line: None) if arguments.quiet else print
    prototypes = fit_prototypes(cells, bank, strength=arguments.strength, note=say)
    prototypes = prototypes.made_by(inferencer.describe())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    replace(vocabulary, prototypes=prototypes).save(arguments.out)
    without = [name for name in vocabulary.names if name not in prototypes.names]
    say(
        f"{arguments.out}: {len(prototypes.names)} classes from {len(examples)} images"
        + (
            f"; by words alone: {', '.join(without[:8])}{' ...' if len(without) > 8 else ''}"
            if without
            else ""
        )
    )


def build(arguments: argparse.Namespace) -> Any:
    """The inferencer that the arguments ask for."""
    names = ("encoder", "guide", "sam", "saliency", "convolutions")
    common = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    common |= {"device": arguments.device, "dtype": arguments.dtype}
    from ovseg.arguments import parse_options

    options = parse_options(arguments.opts)
    if arguments.method.endswith(".py"):
        from ovseg.mm.build import inferencer_from_config, load_config

        weights = None if arguments.weights is None else str(arguments.weights)
        return inferencer_from_config(load_config(arguments.method, options), weights=weights, **common)
    from ovseg.inferencer import Inferencer

    return Inferencer(arguments.method, weights=arguments.weights, **common, **options)


if __name__ == "__main__":
    sys.exit(main())
