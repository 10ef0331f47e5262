# Regions of scenes as masked crops of 64 px; all regions in validation and test.
_base_ = "scenes_loaders.py"
train_dataloader = dict(
    batch_size=6,
    dataset=dict(
        type="SceneRegions",
        length=8000,
        pipeline=[dict(type="RenderRegions"), dict(type="PackRegionCrops", side=64, flip=0.5)],
    ),
)
val_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type="SceneRegions",
        split="val",
        length=24,
        test_mode=True,
        pipeline=[dict(type="RenderRegions"), dict(type="PackRegionCrops", side=64)],
    ),
)
val_evaluator = dict(type="RegionAccuracy")
test_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SceneRegions",
        split="test",
        length=64,
        test_mode=True,
        pipeline=[dict(type="RenderRegions"), dict(type="PackRegionCrops", side=64)],
    ),
)
test_evaluator = dict(type="RegionAccuracy")
