_base_ = ["../_base_/methods/excel.py", "../_base_/datasets/coco_object.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="coco_object")
