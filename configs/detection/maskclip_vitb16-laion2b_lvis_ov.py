_base_ = ["../_base_/methods/maskclip.py", "../_base_/datasets/lvis_ov.py", "../_base_/runtime/detection.py"]
model = dict(type="OvDetector", vocabulary="lvis", head=dict(min_share=0.0, max_detections=300))
