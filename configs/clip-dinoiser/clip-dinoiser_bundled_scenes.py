_base_ = [
    "../_base_/methods/clip-dinoiser.py",
    "../_base_/datasets/scenes.py",
    "../_base_/runtime/default.py",
]
model = dict(
    encoder="bundled",
    vocabulary=dict(type="SceneClasses"),
    method=dict(short_side=224, crop=112, stride=56, threshold=0.35),
)
