_base_ = [
    "../_base_/methods/patch-memory.py",
    "../_base_/datasets/scenes_anomaly.py",
    "../_base_/runtime/default.py",
]
model = dict(guide="bundled")
test_dataloader = dict(dataset=dict(shots=4))
