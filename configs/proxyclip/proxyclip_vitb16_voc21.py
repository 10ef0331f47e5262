_base_ = ["../_base_/methods/proxyclip.py", "../_base_/datasets/voc21.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="voc21_proxyclip", head=dict(threshold=0.2))
