_base_ = "../encoders/clip_vitb16_laion2b.py"
model = dict(method=dict(type="clip-dinoiser-teacher"), templates="imagenet80")
