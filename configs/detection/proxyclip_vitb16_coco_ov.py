_base_ = ["../_base_/methods/proxyclip.py", "../_base_/datasets/coco_ov.py", "../_base_/runtime/detection.py"]
model = dict(type="OvDetector", vocabulary="ov_coco", head=dict(min_share=0.0))
