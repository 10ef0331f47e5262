# The published second stage: prompts of depth 3, 0.05, no decay, 128 crops a step, 5 epochs. It begins from
# the
# first stage's tower: --cfg-options model.tower=work_dirs/mask-adapted-clip_tower_vitb16-openai_coco/CKPT
_base_ = "mask-adapted-clip_tower_vitb16-openai_coco.py"
model = dict(learns="prompts")
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=0.0))
