"""What was measured, kept in files: a part of the benchmark and a seed each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ovseg.benchmark.figures import Records

#: By row of a table, a record for each scene.
Rows = dict[str, list[dict[str, Any]]]


def measured(
    part: str,
    seeds: Sequence[int],
    settings: dict[str, Any],
    measure: Callable[[int], Rows],
    keep: Path | None = None,
) -> dict[str, Records]:
    """Records by row and seed, measured or read back.

    Args:
        part: of the benchmark.
        seeds: of the scenes.
        settings: all that changes the records; a file of other settings is measured again.
        measure: a seed's rows.
        keep: folder of the files.
    """
    found: dict[str, list] = {}
    told = json.loads(json.dumps(settings))
    for seed in seeds:
        path = None if keep is None else keep / f"{part}_{seed}.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
        rows = stored["rows"] if stored.get("settings") == told else measure(seed)
        if path is not None and stored.get("settings") != told:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"settings": told, "rows": rows}), encoding="utf-8")
        for row, records in rows.items():
            found.setdefault(row, []).append(records)
    return dict(found)
