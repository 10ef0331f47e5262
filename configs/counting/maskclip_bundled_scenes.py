# Whole scenes, half as large again: chosen on split="val".
_base_ = [
    "../_base_/methods/maskclip.py",
    "../_base_/datasets/scenes_counting.py",
    "../_base_/runtime/default.py",
]
model = dict(
    type="OvCounter",
    encoder="bundled",
    vocabulary=dict(type="SceneClasses"),
    method=dict(short_side=336, crop=None, stride=None),
)
