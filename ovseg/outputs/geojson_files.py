"""GeoJSON: a feature for each object or region, in pixels, or in the coordinates of a map.

RFC 7946 knows longitude and latitude only. For images the coordinates are pixels (x to the right, y down),
and the member "ovseg" says so. For georeferenced rasters they are those of the raster's own reference system,
named in the member "crs" of the format's 2008 edition, which GDAL, QGIS and their like read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ovseg.images import BinaryStream
from ovseg.outputs.polygons import outlines, signed_area
from ovseg.outputs.shapes import Shape, shapes_of

Ring = list[list[Any]]


def write(stream: BinaryStream, result: Any) -> None:
    """A feature collection in pixels.

    Args:
        stream: where to.
        result: a `Segmentation`, `Panoptic` or `Detections`.
    """
    content = {
        "type": "FeatureCollection",
        "ovseg": {"units": "pixels", "image_hw": list(result.image_hw)},
        "features": [feature(shape, number) for number, shape in enumerate(shapes_of(result), start=1)],
    }
    stream.write(json.dumps(content, ensure_ascii=False).encode())


def feature(shape: Shape, number: int) -> dict[str, Any]:
    """A shape as a feature: a polygon with its holes, or several."""
    if shape.mask is None:
        left, top, right, bottom = shape.box_xyxy
        parts: list[list[Ring]] = [
            [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]
        ]
    else:
        parts = [placed((each.exterior, *each.holes), None) for each in outlines(shape.mask, shape.corner_xy)]
    properties: dict[str, Any] = {
        "name": shape.name,
        "class_id": shape.label,
        "score": round(shape.score, 4),
    }
    if shape.mask is not None:
        properties["pixels"] = int(shape.mask.sum())
    if shape.is_thing is not None:
        properties["thing"] = shape.is_thing
    several = len(parts) > 1
    geometry = {
        "type": "MultiPolygon" if several else "Polygon",
        "coordinates": parts if several else parts[0],
    }
    return {"type": "Feature", "id": number, "properties": properties, "geometry": geometry}


def georeferenced(
    content: bytes, to_map: Callable[[np.ndarray], np.ndarray], crs: dict[str, Any] | None
) -> bytes:
    """A collection in pixels as one of a map; one of a map stays as it is.

    Args:
        content: of a file.
        to_map: coordinates `(n, 2)` of pixels to those of the map.
        crs: the member of that name.
    """
    found = json.loads(content)
    if found["ovseg"]["units"] != "pixels":
        return content
    for each in found["features"]:
        geometry = each["geometry"]
        several = geometry["type"] == "MultiPolygon"
        parts = geometry["coordinates"] if several else [geometry["coordinates"]]
        moved = [placed([np.array(ring[:-1]) for ring in rings], to_map) for rings in parts]
        geometry["coordinates"] = moved if several else moved[0]
    found["ovseg"]["units"] = "crs"
    collection = {"type": found.pop("type"), **({} if crs is None else {"crs": crs}), **found}
    return json.dumps(collection, ensure_ascii=False).encode()


def placed(rings: Sequence[np.ndarray], to_map: Callable[[np.ndarray], np.ndarray] | None) -> list[Ring]:
    """Coordinates of a polygon as RFC 7946 wants them.

    Rings are closed; the exterior has a positive signed area, and holes have a negative one.

    Args:
        rings: the exterior and holes, in pixels, not closed.
        to_map: see `georeferenced`; None leaves pixels.
    """
    found = []
    for at, ring in enumerate(rings):
        moved = ring if to_map is None else to_map(ring)
        moved = moved if (signed_area(moved) > 0) == (at == 0) else moved[::-1]
        found.append([*moved.tolist(), moved[0].tolist()])
    return found
