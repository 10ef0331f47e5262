"""Which patches belong together: small modules, an opened block (and guide features) in, an Affinity out.

`None` instead of an Affinity means identity: every patch keeps its own value.
"""

from typing import Protocol, runtime_checkable

from ovseg.correlation.colour import ColourCorrelation, ColourGuide
from ovseg.correlation.neighbourhood import NeighbourhoodCorrelation
from ovseg.correlation.proxy import ProxyCorrelation
from ovseg.correlation.self_attention import IdentityCorrelation, QueryKeyCorrelation, SelfCorrelation
from ovseg.structures import Affinity, OpenBlock, PatchFeatures

__all__ = [
    "ColourCorrelation",
    "ColourGuide",
    "Correlation",
    "IdentityCorrelation",
    "NeighbourhoodCorrelation",
    "ProxyCorrelation",
    "QueryKeyCorrelation",
    "SelfCorrelation",
]


@runtime_checkable
class Correlation(Protocol):
    """What the scorer calls between `encoder.open` and `encoder.close`."""

    def __call__(self, block: OpenBlock, guide: PatchFeatures | None = None) -> Affinity | None:
        """The affinity of an image's tokens; None is identity."""
