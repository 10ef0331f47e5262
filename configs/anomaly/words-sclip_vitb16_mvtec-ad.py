_base_ = [
    "../_base_/methods/anomaly-words.py",
    "../_base_/datasets/mvtec_ad.py",
    "../_base_/runtime/default.py",
]
