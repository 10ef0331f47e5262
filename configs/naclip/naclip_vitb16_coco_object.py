_base_ = ["../_base_/methods/naclip.py", "../_base_/datasets/coco_object.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="coco_object", head=dict(threshold=0.1))
