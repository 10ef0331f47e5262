# DenseCLIP with UPerNet, which the paper names and the authors' code leaves out: mmseg's usual settings.
model = dict(
    type="DenseClip",
    decode_head=dict(
        type="mmseg.UPerHead",
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(type="mmseg.CrossEntropyLoss", avg_non_ignore=True),
    ),
    auxiliary_head=dict(
        type="mmseg.FCNHead",
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(type="mmseg.CrossEntropyLoss", avg_non_ignore=True, loss_weight=0.4),
    ),
)
