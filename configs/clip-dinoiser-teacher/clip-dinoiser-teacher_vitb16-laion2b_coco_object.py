_base_ = [
    "../_base_/methods/clip-dinoiser-teacher.py",
    "../_base_/datasets/coco_object.py",
    "../_base_/runtime/default.py",
]
model = dict(vocabulary="coco_object_dinoiser")
