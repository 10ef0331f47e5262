_base_ = [
    "../_base_/methods/anomalyclip.py",
    "../_base_/datasets/mvtec_ad.py",
    "../_base_/runtime/default.py",
]
test_evaluator = dict(size=518)
