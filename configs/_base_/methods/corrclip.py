_base_ = "../encoders/clip_vitb16_metaclip.py"
model = dict(method=dict(type="corrclip"), templates="imagenet80")
