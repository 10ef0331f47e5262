"""tools/infer.py on Ray Data: a folder or a URI in, parquet rows and files out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """\
examples:
  python tools/infer_ray.py photos/ -c "cat, dog" --encoder bundled -o out/
  python tools/infer_ray.py s3://bucket/photos -c words.yaml --workers 8 --gpus 1 -o /shared/out

The folder of results must be seen by all workers. The same command again goes on where it was stopped.
exit status: 0 all images done, 1 some failed, 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="infer_ray.py",
        description="Ask many images by words, on the cores of this machine or on a Ray cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", help="a folder, or a URI that pyarrow reads (s3://, gs://, hdfs://)")
    parser.add_argument("-c", "--classes", required=True, help="words, a file of words, or a shipped list")
    parser.add_argument("-t", "--task", default="segment", help="as for infer.py (default: segment)")
    parser.add_argument("--method", default="sclip", help="a method's name (default: sclip)")
    parser.add_argument("--encoder", help="an encoder's name, or 'bundled' (default: the best one at hand)")
    parser.add_argument("--threshold", type=float, help="less probable pixels become background or no class")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="options of the method")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--formats", default="labels,overlay", help="as for infer.py (default: labels,overlay)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out"), help="folder of results (default: out)"
    )
    parser.add_argument("--workers", type=int, default=2, help="actors (default: 2)")
    parser.add_argument("--batch-size", type=int, default=4, help="images at a time (default: 4)")
    parser.add_argument("--cpus", type=float, default=0.5, help="of each actor (default: 0.5)")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor (default: 0)")
    parser.add_argument("--rows-per-file", type=int, default=256, help="of the parquet files (default: 256)")
    parser.add_argument("--address", help="of a Ray cluster, as ray://head:10001 (default: this machine)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from ovseg.errors import OvsegError

    try:
        return _run(arguments)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped: what is done is in '{arguments.out}'; the same command goes on", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ovseg.arguments import parse_options
    from ovseg.engines.ray import find_files, run
    from ovseg.text.vocabulary import Vocabulary

    config = {
        "method": arguments.method,
        "classes": Vocabulary.parse(arguments.classes).to_dict(),
        "tasks": arguments.task,
        "formats": arguments.formats,
        "device": arguments.device,
        **parse_options(arguments.opts),
    }
    for name in ("encoder", "threshold"):
        if getattr(arguments, name) is not None:
            config[name] = getattr(arguments, name)
    total = len(find_files(arguments.input))  # before Ray starts
    import ray.data

    ray.init(
        address=arguments.address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tqdm(total=total, unit="image", disable=not sys.stderr.isatty()) as bar:
        done, skipped, failed = run(
            arguments.input,
            arguments.out,
            config,
            workers=arguments.workers,
            batch_size=arguments.batch_size,
            num_cpus=arguments.cpus,
            num_gpus=arguments.gpus,
            rows_per_file=arguments.rows_per_file,
            on_rows=bar.update,
        )
    print(f"{done} of {total} images, {skipped} done earlier; rows in {arguments.out / 'rows'}")
    for name, reason in failed[:20]:
        print(f"  {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
