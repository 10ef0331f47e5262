# On training scenes of one damaged or sound thing each; tested on products that it has not been trained for.
_base_ = ["../_base_/datasets/scenes_defects_train.py", "../_base_/runtime/train_scenes.py"]
model = dict(type="AnomalyClipTrainer", encoder="bundled", deep_blocks=2, size=224)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-3, betas=(0.5, 0.999)))
train_cfg = dict(max_iters=150, val_interval=75)
