_base_ = [
    "../_base_/methods/denseclip_retinanet.py",
    "../_base_/datasets/coco_instance_train.py",
    "../_base_/schedules/denseclip_1x.py",
]
model = dict(encoder="RN101-quickgelu:openai", classes="coco", matching=dict(context_std=1.0))
val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
