_base_ = [
    "../_base_/methods/san_vitl14.py",
    "../_base_/datasets/context59.py",
    "../_base_/runtime/default.py",
]
model = dict(vocabulary="context59")
