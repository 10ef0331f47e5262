_base_ = ["../_base_/methods/anovl.py", "../_base_/datasets/mvtec_ad.py", "../_base_/runtime/default.py"]
# Textures have domain words of their own.
textures = ("carpet", "grid", "leather", "tile", "wood")
model = dict(prompts={"*": "anovl", **dict.fromkeys(textures, "anovl_texture")})
test_evaluator = dict(size=240)
