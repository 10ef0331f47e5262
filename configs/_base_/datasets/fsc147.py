_base_ = "counting.py"
test_dataloader = dict(dataset=dict(type="FSC147Dataset", data_root="data/FSC147", split="test"))
