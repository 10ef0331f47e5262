_base_ = [
    "../_base_/methods/anomaly-words.py",
    "../_base_/datasets/scenes_anomaly.py",
    "../_base_/runtime/default.py",
]
model = dict(encoder="bundled", method=dict(short_side=224, crop=112, stride=56))
