"""The page in a browser: `python demo/app.py`, then open the address that it prints. See docs/demo.md."""

from __future__ import annotations

import sys
from pathlib import Path

from ovseg.demo.serve import main

if __name__ == "__main__":
    sys.exit(main(examples=Path(__file__).with_name("examples.json")))
