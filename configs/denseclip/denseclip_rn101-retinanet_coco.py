_base_ = "denseclip_rn50-retinanet_coco.py"
model = dict(encoder="RN101-quickgelu:openai")
