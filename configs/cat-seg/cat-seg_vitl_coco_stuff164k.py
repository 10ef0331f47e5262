_base_ = [
    "../_base_/methods/cat-seg_vitl.py",
    "../_base_/datasets/coco_stuff164k.py",
    "../_base_/runtime/default.py",
]
model = dict(vocabulary="coco_stuff")
