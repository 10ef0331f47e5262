_base_ = [
    "../_base_/methods/anovl.py",
    "../_base_/datasets/scenes_anomaly.py",
    "../_base_/runtime/default.py",
]
model = dict(encoder="bundled")
