"""What configs of detection import: mmdet's data sets and metrics, ovseg's beside them.

mmdet takes seconds to import, which segmentation need not wait for; so configs name this module:

    custom_imports = dict(imports=["ovseg.mm", "ovseg.mm.detection"])

`mmdet.models` is not imported here.
"""

from __future__ import annotations

import contextlib
import io
import warnings

from ovseg.mm import compiled_ops

compiled_ops.install()  # before anything of mmdet

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # both name optional packages that nothing here uses
    warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")
    import mmdet.datasets
    import mmdet.evaluation  # noqa: F401

from ovseg.mm import coco_data, coco_metric, scenes_detection  # noqa: E402

__all__ = ["coco_data", "coco_metric", "scenes_detection"]
