_base_ = [
    "../_base_/methods/winclip.py",
    "../_base_/datasets/scenes_anomaly.py",
    "../_base_/runtime/default.py",
]
model = dict(encoder="bundled")
test_dataloader = dict(dataset=dict(shots=4))
