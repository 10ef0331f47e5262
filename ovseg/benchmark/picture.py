"""Each head on one scene, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovseg.anomaly_build import build_anomaly_inferencer
from ovseg.benchmark.anomalies import SIDE
from ovseg.benchmark.objects import objects_of, predictor
from ovseg.outputs.drawing import count_overlay, detection_overlay, instance_overlay
from ovseg.outputs.heat_maps import anomaly_overlay
from ovseg.outputs.visualize import INK, PANEL
from ovseg.scenes import SceneSet
from ovseg.scenes.inspection import InspectionSet

#: Scenes are drawn larger than they are measured at, for the sake of letters.
SIZE_HW = (448, 576)


def heads_picture(
    seed: int = 0, *, scene: int = 0, counted: int = 0, kind: str = "clock", good: int = 8
) -> Image.Image:
    """Boxes, instances, counts and a heat map.

    Args:
        seed: of all scenes.
        scene: which of split `test` shows boxes and instances.
        counted: which of split `counting` is counted.
        kind: the product that is inspected: the first damaged one of its test scenes.
        good: good images of it, from which the threshold comes, too.
    """
    tests, many = SceneSet("test", seed), SceneSet("counting", seed)
    inferencer = predictor()
    image = tests.render(scene, SIZE_HW).image
    (found,) = inferencer.ask(inferencer.encode([image]), objects_of(tests), ("instances", "detect"))
    crowd = many.render(counted, SIZE_HW).image
    (numbers,) = inferencer.ask(inferencer.encode([crowd]), objects_of(many), ("count",))
    products = InspectionSet(kind, "test", seed)
    index = next(k for k in range(len(products)) if products[k].defects.any())
    memory = build_anomaly_inferencer("patch-memory", encoder="bundled", short_side=SIDE)
    shots = InspectionSet(kind, "good", seed)
    memory.learn([shots.render(k, SIZE_HW).image for k in range(good)], kind)
    product = products.render(index, SIZE_HW).image
    (heat,) = memory([product], kind)
    return beside(
        [
            ("detect", detection_overlay(image, found.of("detect"))),
            ("instances", instance_overlay(image, found.of("instances"))),
            ("count", count_overlay(crowd, numbers.of("count"))),
            (f"anomaly: patch memory of {good} good images", anomaly_overlay(product, heat)),
        ]
    )


def beside(pictures: Sequence[tuple[str, Image.Image]], *, columns: int = 2, gap: int = 16) -> Image.Image:
    """Pictures in a table, each under its title."""
    font = ImageFont.load_default(20)
    width = max(picture.width for _, picture in pictures)
    height = max(picture.height for _, picture in pictures) + 30
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), PANEL)
    draw = ImageDraw.Draw(canvas)
    for place, (title, picture) in enumerate(pictures):
        row, column = np.divmod(place, columns)
        left, top = gap + int(column) * (width + gap), gap + int(row) * (height + gap)
        draw.text((left, top), title, fill=INK, font=font)
        canvas.paste(picture, (left, top + 30))
    return canvas
