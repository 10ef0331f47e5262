_base_ = "counting.py"
test_dataloader = dict(
    dataset=dict(type="ShanghaiTechDataset", data_root="data/ShanghaiTech", part="B", split="test")
)
