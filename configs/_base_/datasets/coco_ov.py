# Open-vocabulary COCO, the generalised setting: base and novel classes together, figures for each.
_base_ = "coco_instance.py"
test_dataloader = dict(dataset=dict(vocabulary="ov_coco", only_with_objects=True))
test_evaluator = dict(metric="bbox", sizes=False, splits=dict(base="ov_coco_base", novel="ov_coco_novel"))
