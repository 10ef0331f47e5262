_base_ = "clip-ebc_rn50_shanghaitech_a.py"
model = dict(bins=dict(dataset="shb"))
train_dataloader = dict(dataset=dict(part="B"))
val_dataloader = dict(dataset=dict(part="B"))
test_dataloader = dict(dataset=dict(part="B"))
