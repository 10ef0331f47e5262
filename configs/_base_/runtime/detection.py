_base_ = "default.py"
custom_imports = dict(imports=["ovseg.mm", "ovseg.mm.detection"])
