_base_ = ["../_base_/methods/trident.py", "../_base_/datasets/coco_object.py", "../_base_/runtime/default.py"]
model = dict(
    vocabulary="coco_object_proxyclip",
    method=dict(short_side=448, coarse_threshold=0.25),
    head=dict(threshold=0.25),
)
