_base_ = ["../_base_/methods/sc-clip.py", "../_base_/datasets/coco_object.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="coco_object", method=dict(temperature=55.0), head=dict(threshold=0.35))
