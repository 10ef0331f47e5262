"""OpenMMLab at the edge: ovseg's parts under mmengine's registries, and a model that the Runner can test.

The only package of ovseg that imports mmengine, mmcv or mmseg; nothing outside of it and the tools imports
it. It holds no arithmetic: wrappers unpack data samples, call the core, and pack the answer. Importing it
registers everything under the scope `ovseg`, so a config needs

    default_scope = "ovseg"
    custom_imports = dict(imports=["ovseg.mm"])

`mmcv.ops` is treated as absent.
"""

from __future__ import annotations

import sys

from ovseg.mm.dependencies import check_openmmlab

check_openmmlab()

from ovseg.mm import registry  # noqa: E402  # after the check, whose message is the better one

# mmengine imports `<scope>.registry` whenever a config's default scope is `ovseg`.
sys.modules.setdefault("ovseg.registry", registry)

from ovseg.mm.build import build_inferencer, inferencer_from_config, load_config  # noqa: E402
from ovseg.mm.segmentor import OvSegmentor  # noqa: E402

__all__ = ["OvSegmentor", "build_inferencer", "inferencer_from_config", "load_config"]
