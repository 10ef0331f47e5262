"""What configs can name: children of mmengine's registries, and the table of the core's parts.

The core knows nothing of registries. Its classes and methods are entered here, in one place; the classes of
`ovseg.mm` itself register where they stand, and are imported when a registry is first asked.
"""

from __future__ import annotations

import mmengine.registry as _mmengine
import mmseg.registry  # noqa: F401  # makes the scope `mmseg` known to mmengine, without importing its models
from mmengine.registry import Registry

from ovseg.correlation import (
    IdentityCorrelation,
    NeighbourhoodCorrelation,
    ProxyCorrelation,
    QueryKeyCorrelation,
    SelfCorrelation,
)
from ovseg.encoders.positions import PositionRule
from ovseg.heads import SegmentationHead
from ovseg.methods import METHODS
from ovseg.refine.pamr import PAMR
from ovseg.refine.par import PAR
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan

SCOPE = "ovseg"

MODELS = Registry(
    "model",
    parent=_mmengine.MODELS,
    scope=SCOPE,
    locations=[
        "ovseg.mm.build",
        "ovseg.mm.segmentor",
        "ovseg.mm.detector",
        "ovseg.mm.dinoiser_trainer",
        "ovseg.mm.denseclip",
        "ovseg.mm.denseclip_detector",
        "ovseg.mm.anomaly_model",
        "ovseg.mm.mask_prompt_trainer",
        "ovseg.mm.mmseg_adapter",
        "ovseg.mm.counter",
        "ovseg.mm.count_trainer",
        "ovseg.mm.anomalyclip_trainer",
        "ovseg.mm.prompt_trainer",
    ],
)
DATASETS = Registry(
    "dataset",
    parent=_mmengine.DATASETS,
    scope=SCOPE,
    locations=[
        "ovseg.mm.datasets",
        "ovseg.mm.scenes_dataset",
        "ovseg.mm.draws",
        "ovseg.mm.unlabelled",
        "ovseg.mm.anomaly_datasets",
        "ovseg.mm.defect_scenes",
        "ovseg.mm.scenes_anomaly",
        "ovseg.mm.region_datasets",
        "ovseg.mm.counting_datasets",
    ],
)
TRANSFORMS = Registry(
    "transform",
    parent=_mmengine.TRANSFORMS,
    scope=SCOPE,
    locations=[
        "ovseg.mm.scenes_dataset",
        "ovseg.mm.scene_labels",
        "ovseg.mm.unlabelled",
        "ovseg.mm.region_datasets",
        "ovseg.mm.anomaly_datasets",
        "ovseg.mm.defect_scenes",
        "ovseg.mm.scenes_anomaly",
        "ovseg.mm.counting_datasets",
    ],
)
HOOKS = Registry(
    "hook", parent=_mmengine.HOOKS, scope=SCOPE, locations=["ovseg.mm.hooks", "ovseg.mm.training_hooks"]
)

#: Where the other kinds are. Most have none of ovseg's; mmengine looks for a registry of the default scope
#: all the same, and warns where there is none. Yours can be registered in them.
LOCATIONS = {
    "DATA_SAMPLERS": ["ovseg.mm.draws"],
    "LOOPS": ["ovseg.mm.draws"],
    "METRICS": ["ovseg.mm.region_datasets", "ovseg.mm.anomaly_metric", "ovseg.mm.counting_metric"],
    "OPTIM_WRAPPERS": ["ovseg.mm.optim"],
    "OPTIM_WRAPPER_CONSTRUCTORS": ["ovseg.mm.optim"],
    "RUNNERS": ["ovseg.mm.train_runner"],
}
OTHERS = {
    kind: Registry(
        parent.name, parent=parent, scope=SCOPE, locations=LOCATIONS.get(kind, ["ovseg.mm.registry"])
    )
    for kind, parent in vars(_mmengine).items()
    if isinstance(parent, Registry) and kind not in ("MODELS", "DATASETS", "TRANSFORMS", "HOOKS")
}
LOOPS, METRICS = OTHERS["LOOPS"], OTHERS["METRICS"]
DATA_SAMPLERS, OPTIM_WRAPPERS = OTHERS["DATA_SAMPLERS"], OTHERS["OPTIM_WRAPPERS"]
OPTIM_WRAPPER_CONSTRUCTORS, RUNNERS = OTHERS["OPTIM_WRAPPER_CONSTRUCTORS"], OTHERS["RUNNERS"]
#: The core's parts by the name that a config's `type` takes.
CORE_PARTS = {
    # correlations
    "IdentityCorrelation": IdentityCorrelation,
    "NeighbourhoodCorrelation": NeighbourhoodCorrelation,
    "ProxyCorrelation": ProxyCorrelation,
    "QueryKeyCorrelation": QueryKeyCorrelation,
    "SelfCorrelation": SelfCorrelation,
    # around them
    "PositionRule": PositionRule,
    "WindowPlan": WindowPlan,
    "Scorer": Scorer,
    # after them
    "PAMR": PAMR,
    "PAR": PAR,
    "SegmentationHead": SegmentationHead,
    # published methods, by the name that --method takes: clip, maskclip, sclip ...
    **METHODS,
}

for name, part in CORE_PARTS.items():
    MODELS.register_module(name=name, module=part)
