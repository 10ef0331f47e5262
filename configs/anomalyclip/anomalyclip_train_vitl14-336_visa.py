# As published: trained on the test images of VisA, with their masks, and tested on MVTec AD.
_base_ = "anomalyclip_train_vitl14-336_mvtec-ad.py"
train_dataloader = dict(dataset=dict(type="VisADataset", data_root="data/visa"))
test_dataloader = dict(dataset=dict(type="MVTecADDataset", data_root="data/mvtec_ad"))
