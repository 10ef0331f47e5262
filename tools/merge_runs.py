"""Join the shards of a run: one folder, one results.jsonl, one COCO file of each task."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

EXAMPLES = """\
example, eight processes anywhere that see the same folders:
  python tools/infer.py photos/ -c "cat, dog" -o out/ --shard 1/8     ... 8/8
  python tools/merge_runs.py out/

exit status: 0 merged, 1 merged with failed images, 2 wrong usage or a shard that is not finished.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merge_runs.py",
        description="Join the shards that tools/infer.py --shard has written into one run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--keep", action="store_true", help="copy the files and leave the shards")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from ovseg.errors import OvsegError
    from ovseg.outputs.run_files import write_run_files
    from ovseg.shards import merge
    from ovseg.text.vocabulary import Vocabulary

    try:
        with ExitStack() as stack:
            merged = merge(arguments.out, keep=arguments.keep, stack=stack)
            settings = merged.folder.settings
            formats = {each.partition("_")[0].partition(".")[0] for each in merged.files}
            files = write_run_files(
                merged.folder,
                merged.images,
                Vocabulary.from_dict(settings["vocabulary"]),
                settings["tasks"],
                sorted(formats & {"coco", "panoptic"}),
            )
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{merged.done} images, {merged.failed} failed, in {arguments.out}")
    for name in files:
        print(f"  {arguments.out / name}")
    return 1 if merged.failed else 0


if __name__ == "__main__":
    sys.exit(main())
