_base_ = "anomaly.py"
test_dataloader = dict(dataset=dict(type="MVTecADDataset", data_root="data/mvtec_ad"))
