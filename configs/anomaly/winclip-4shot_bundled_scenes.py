_base_ = "winclip_bundled_scenes.py"
test_dataloader = dict(dataset=dict(shots=4))
