_base_ = "../encoders/clip_vitb16_openai.py"
model = dict(method=dict(type="rgb-control"), templates="imagenet80")
