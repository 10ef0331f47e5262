_base_ = "winclip_vitb16-plus_mvtec-ad.py"
test_dataloader = dict(dataset=dict(shots=4))
