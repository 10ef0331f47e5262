_base_ = ["../_base_/methods/clip-surgery.py", "../_base_/datasets/fsc147.py", "../_base_/runtime/default.py"]
model = dict(type="OvCounter")
