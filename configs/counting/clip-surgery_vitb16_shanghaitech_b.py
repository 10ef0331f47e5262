_base_ = [
    "../_base_/methods/clip-surgery.py",
    "../_base_/datasets/shanghaitech_b.py",
    "../_base_/runtime/default.py",
]
model = dict(type="OvCounter")
