_base_ = "denseclip_rn50_ade20k.py"
model = dict(encoder="RN101-quickgelu:openai")
