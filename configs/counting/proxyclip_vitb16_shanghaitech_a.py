_base_ = [
    "../_base_/methods/proxyclip.py",
    "../_base_/datasets/shanghaitech_a.py",
    "../_base_/runtime/default.py",
]
model = dict(type="OvCounter")
