_base_ = "train.py"
custom_imports = dict(imports=["ovseg.mm", "ovseg.mm.detection"])
