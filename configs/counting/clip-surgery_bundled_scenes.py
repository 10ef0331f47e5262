_base_ = [
    "../_base_/methods/clip-surgery.py",
    "../_base_/datasets/scenes_counting.py",
    "../_base_/runtime/default.py",
]
model = dict(type="OvCounter", encoder="bundled", method=dict(short_side=224))
