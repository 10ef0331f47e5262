"""Whether OpenMMLab is there, and which of the two families of packages it is."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from ovseg.errors import MissingDependencyError

#: Import name -> distributions of the maintained continuation and of the original, which share that name.
PACKAGES = {
    "mmengine": ("onedl-mmengine", ("mmengine", "mmengine-lite")),
    "mmcv": ("onedl-mmcv", ("mmcv", "mmcv-lite", "mmcv-full")),
    "mmseg": ("onedl-mmsegmentation", ("mmsegmentation",)),
}


def installed(distribution: str) -> bool:
    """Whether a distribution is installed, by the name that pip knows."""
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_openmmlab() -> None:
    """Looks before anything is imported.

    Raises:
        MissingDependencyError: packages are absent, or the original and the maintained distribution of one
            of them are both installed, where each has overwritten files of the other.
    """
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingDependencyError(
            f"ovseg.mm needs OpenMMLab, and {', '.join(absent)} cannot be imported: pip install ovseg[mm]"
        )
    both = [
        (maintained, original)
        for maintained, originals in PACKAGES.values()
        for original in originals
        if installed(maintained) and installed(original)
    ]
    if both:
        pairs = "; ".join(f"{original} and {maintained}" for maintained, original in both)
        names = " ".join(name for pair in both for name in pair)
        raise MissingDependencyError(
            f"two distributions of the same package are installed and have overwritten each other's files: "
            f"{pairs}. Remove both, then install one: pip uninstall -y {names} && pip install ovseg[mm]"
        )
