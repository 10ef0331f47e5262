"""Write a method as a file that runs without this package: ONNX, TorchScript or torch.export.

Thin on purpose: arguments here, the work in `ovseg.export`. `docs/export.md` has the details.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python tools/export.py sclip --encoder bundled -o sclip.onnx
  python tools/export.py --encoder bundled --words "cat, dog, grass" -o words.npz
  python tools/export.py proxyclip --encoder clip_vitb16_openai --guide dino_vitb16 --quantize int8
  python tools/export.py maskclip --format torch-export --opts crop=None -o maskclip.pt2

The text is an input of the file: other words need a new words.npz and no new export. A method that cannot be
exported says why.

exit status: 0 written and in agreement with torch, 1 written and not in agreement, 2 wrong usage.
"""
DEMO = Path(__file__).resolve().parents[1] / "demo"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export.py",
        description="Write the image side of a method, or encoded words, for other runtimes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", nargs="?", help="a method's name; not needed for words alone")
    parser.add_argument("--format", default="onnx", help="onnx (default), torchscript or torch-export")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="default: METHOD.onnx, .pt or .pt2; .npz for words"
    )
    parser.add_argument("--words", metavar="CLASSES", help='words to encode: "cat, dog", a file, a list')
    parser.add_argument("--templates", default="imagenet80", help="prompt templates, as infer.py takes them")
    how = parser.add_argument_group("how")
    how.add_argument("--encoder", help="an encoder's name, or 'bundled' (default: the best one at hand)")
    how.add_argument("--weights", type=Path, help="a local weights file instead of the encoder's own")
    for part in ("guide", "saliency", "convolutions"):
        how.add_argument(f"--{part}", help=f"the {part} that the method asks")
    how.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="options of the method")
    how.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="only windows of this size (default: any)"
    )
    how.add_argument("--quantize", choices=("int8",), help="weights of an ONNX file as int8")
    how.add_argument(
        "--images",
        type=Path,
        default=DEMO / "images",
        metavar="DIR",
        help="compare labels on these with torch, by --words (default: demo/images, demo/classes.txt)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print failures only")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from ovseg.errors import OvsegError

    try:
        return run(arguments)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Exports, compares, reports."""
    from ovseg.arguments import parse_options
    from ovseg.errors import ConfigError, unknown_name
    from ovseg.export.build import encode_words, export
    from ovseg.export.formats import FORMATS
    from ovseg.export.image_side import check_exportable
    from ovseg.inferencer import Inferencer
    from ovseg.methods import options_of

    say = (lambda line: None) if arguments.quiet else print
    only_words = arguments.out is not None and arguments.out.suffix == ".npz"
    if only_words and arguments.words is None:
        raise ConfigError("-o words.npz needs --words 'cat, dog'")
    if not only_words and arguments.method is None:
        raise ConfigError("which method? As in: export.py sclip -o sclip.onnx")
    method = arguments.method
    if not only_words:  # whatever is wrong: say so before any weights are loaded
        options_of(method)
        check_exportable(method)
        if arguments.format not in FORMATS:
            raise unknown_name("format", arguments.format, FORMATS)
        if arguments.quantize and arguments.format != "onnx":
            raise ConfigError(f"--quantize is for --format onnx, not {arguments.format}")
    templates = arguments.templates.split("|") if "{}" in arguments.templates else arguments.templates
    common = {"encoder": arguments.encoder, "weights": arguments.weights, "device": "cpu"}
    if only_words:
        table = encode_words(Inferencer("clip", **common), arguments.words, templates)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.save(arguments.out)
        say(f"{arguments.out}: {len(table.names)} classes, {len(table.embeddings)} queries, {table.encoder}")
        return 0
    parts = {name: getattr(arguments, name) for name in ("guide", "saliency", "convolutions")}
    inferencer = Inferencer(method, **common, **parts, **parse_options(arguments.opts))
    if inferencer.notice:
        say(inferencer.notice)
    path = arguments.out or Path(method + FORMATS[arguments.format])
    size_hw = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    done = export(inferencer, path, arguments.format, size_hw=size_hw, int8=arguments.quantize == "int8")
    say(f"{path}: {method}, {path.stat().st_size / 2**20:.1f} MiB")
    if done.described.left_out:
        say(f"not part of it: {', '.join(done.described.left_out)}, which refines scores afterwards")
    for (batch, height, width), difference in done.differences.items():
        say(f"  {batch} x {height} x {width}: largest difference from torch {difference:.1e}")
    if not done.agrees:
        print("error: the file does not compute what torch computes", file=sys.stderr)
        return 1
    if arguments.format == "onnx":
        compare(arguments, inferencer, path, templates, say)
    return 0


def compare(arguments: argparse.Namespace, inferencer: Any, path: Path, templates: Any, say: Any) -> None:
    """Labels by the file and by torch on images; the words go beside the file."""
    from ovseg.export.build import encode_words, label_agreement
    from ovseg.export.onnx_inferencer import OnnxInferencer
    from ovseg.inputs import find_images

    if arguments.words is not None:
        table = encode_words(inferencer, arguments.words, templates)
        table.save(path.with_suffix(".npz"))
        say(f"{path.with_suffix('.npz')}: {len(table.names)} classes")
    if not arguments.images.exists():
        say("no labels were compared: name a folder of images, --images DIR")
        return
    images = [each.path for each in find_images([arguments.images])]
    classes = arguments.words or DEMO / "classes.txt"
    share = label_agreement(inferencer, OnnxInferencer(path), images, classes, templates)
    say(f"  {share:.2%} of the pixels of {len(images)} images have the same label as by torch")


if __name__ == "__main__":
    sys.exit(main())
