_base_ = ["../_base_/methods/winclip.py", "../_base_/datasets/visa.py", "../_base_/runtime/default.py"]
test_dataloader = dict(dataset=dict(shots=4))
test_evaluator = dict(size=240)
