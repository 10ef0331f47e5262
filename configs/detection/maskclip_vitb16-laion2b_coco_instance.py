_base_ = [
    "../_base_/methods/maskclip.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/runtime/detection.py",
]
model = dict(type="OvDetector", vocabulary="coco", task="instances", head=dict(min_share=0.0))
