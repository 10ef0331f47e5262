_base_ = [
    "../_base_/methods/patch-memory.py",
    "../_base_/datasets/mvtec_ad.py",
    "../_base_/runtime/default.py",
]
test_dataloader = dict(dataset=dict(shots=4))
