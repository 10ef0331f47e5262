_base_ = [
    "../_base_/methods/denseclip_maskrcnn.py",
    "../_base_/datasets/coco_instance_train.py",
    "../_base_/schedules/denseclip_1x.py",
]
model = dict(encoder="RN50-quickgelu:openai", classes="coco", matching=dict(context_std=1.0))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
