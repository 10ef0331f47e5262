_base_ = [
    "../_base_/methods/proxyclip.py",
    "../_base_/datasets/scenes_detection.py",
    "../_base_/runtime/detection.py",
]
model = dict(
    type="OvDetector",
    encoder="bundled",
    vocabulary=dict(type="SceneObjects"),
    method=dict(short_side=224, crop=112, stride=56),
    head=dict(min_share=0.0),
)
