_base_ = [
    "../_base_/methods/clip-dinoiser.py",
    "../_base_/datasets/context60.py",
    "../_base_/runtime/default.py",
]
model = dict(vocabulary="context60_dinoiser", method=dict(sure=0.0))
