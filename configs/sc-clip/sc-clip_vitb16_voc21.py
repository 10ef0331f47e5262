_base_ = ["../_base_/methods/sc-clip.py", "../_base_/datasets/voc21.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="voc21", method=dict(temperature=50.0), head=dict(threshold=0.15, area_threshold=0.1))
