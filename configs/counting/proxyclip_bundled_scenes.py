_base_ = [
    "../_base_/methods/proxyclip.py",
    "../_base_/datasets/scenes_counting.py",
    "../_base_/runtime/default.py",
]
model = dict(
    type="OvCounter",
    encoder="bundled",
    vocabulary=dict(type="SceneClasses"),
    method=dict(short_side=224, crop=112, stride=56),
)
