_base_ = "winclip_vitb16-plus_visa.py"
test_dataloader = dict(dataset=dict(shots=4))
