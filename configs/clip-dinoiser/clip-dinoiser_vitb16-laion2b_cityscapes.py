_base_ = [
    "../_base_/methods/clip-dinoiser.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/runtime/default.py",
]
model = dict(vocabulary="cityscapes_names")
