_base_ = [
    "../_base_/methods/trident.py",
    "../_base_/datasets/coco_stuff164k.py",
    "../_base_/runtime/default.py",
]
model = dict(vocabulary="coco_stuff", method=dict(short_side=448, coarse_threshold=0.05))
