_base_ = "anomaly.py"
test_dataloader = dict(dataset=dict(type="VisADataset", data_root="data/visa"))
