_base_ = "../encoders/clip_vitb16_openai.py"
model = dict(method=dict(type="trident"), templates="imagenet80")
