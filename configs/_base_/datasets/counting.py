# Images at their own size, a name and dots for each; errors of the numbers.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(test_mode=True, pipeline=[dict(type="LoadImageFromFile"), dict(type="PackCounts")]),
)
test_evaluator = dict(type="CountingMetric")
