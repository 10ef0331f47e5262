_base_ = "../encoders/clip_vitb16_openai.py"
model = dict(method=dict(type="excel"), templates="imagenet80")
