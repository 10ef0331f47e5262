"""The command line of `tools/infer.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovseg.arguments import HelpFormatter

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
  python tools/infer.py photos/ --classes "cat, dog" --formats labelme,geojson --report -o out/
  python tools/infer.py scene.tif --classes "forest, water" --formats labels,geojson --bands 4,3,2 -o out/
  python tools/infer.py demo/images --classes demo/classes.txt --encoder bundled -o out/demo

exit status: 0 all images done, 1 some failed (see errors.jsonl), 2 wrong usage, 130 stopped with Ctrl-C.
The same command again finishes a stopped run and tries failed images once more.
"""


def build_parser() -> argparse.ArgumentParser:
    """All options, by what they are about."""
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
        help="pixels that fit none of the words become void: msp, maxlogit, energy or mcm, as maxlogit:9; "
        "with --no-tower also ctw and atd, whose least score is known",
    )
    what.add_argument(
        "--reject-images", metavar="RULE:LEAST", help="the same for whole images, by their class token"
    )
    what.add_argument(
        "--no-tower", metavar="FILE", help="checkpoint of CLIPN, whose second text tower ctw and atd ask"
    )
    boxes = parser.add_argument_group("detection")
    boxes.add_argument(
        "--proposals",
        metavar="sam|FILE",
        help="name regions instead of pixels: SAM's masks, or a COCO file's",
    )
    boxes.add_argument(
        "--crops", choices=("masked", "blurred"), help="let CLIP look at a picture of each region, too"
    )
    boxes.add_argument(
        "--outlines",
        action="store_true",
        help="let SAM (--sam) draw the outlines of boxes and instances",
    )
    boxes.add_argument(
        "--scenes",
        type=int,
        default=0,
        metavar="N",
        help="the N scene names that fit an image best compete as background (default: 0)",
    )
    boxes.add_argument(
        "--refer",
        action="store_true",
        help="the words are phrases, and each means the one region it fits best",
    )
    boxes.add_argument(
        "--attributes", metavar="WORDS", help="what boxes may be, as 'red, wooden': each scored by itself"
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
        "--formats",
        default="labels,overlay",
        help="of: labels, overlay, scores, coco, panoptic, yolo, labelme, geojson, html",
    )
    output.add_argument(
        "--report", action="store_true", help="one page of the whole run (report.html), the same as html"
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
    maps = parser.add_argument_group(
        "rasters", "TIFFs on a map, or too large for memory, are segmented tile by tile (docs/outputs.md)"
    )
    maps.add_argument("--geo", action="store_true", help="read every TIFF so")
    maps.add_argument("--tile", type=int, default=512, help="side in pixels of what the method sees at once")
    maps.add_argument("--overlap", type=int, default=128, help="pixels that neighbouring tiles share")
    maps.add_argument("--bands", metavar="R,G,B", help="band numbers from 1, as 4,3,2, or one for grey")
    maps.add_argument(
        "--percentiles",
        metavar="LOW,HIGH",
        help="of the whole raster's values that become black and white (default: 2,98; bytes stay)",
    )
    return parser
