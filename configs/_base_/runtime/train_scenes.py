# For small models on scenes: a figure before the first step, so that the curve shows what was gained.
_base_ = "train.py"
validate_first = True
default_hooks = dict(checkpoint=dict(interval=100))
