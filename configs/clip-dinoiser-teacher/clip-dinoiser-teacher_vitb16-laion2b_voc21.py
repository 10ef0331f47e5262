_base_ = [
    "../_base_/methods/clip-dinoiser-teacher.py",
    "../_base_/datasets/voc21.py",
    "../_base_/runtime/default.py",
]
model = dict(vocabulary="voc21_dinoiser")
