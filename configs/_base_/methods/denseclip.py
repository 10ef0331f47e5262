# DenseCLIP with Semantic FPN, as published; channels follow the encoder and the classes.
model = dict(
    type="DenseClip",
    neck=dict(type="mmseg.FPN", out_channels=256, num_outs=4),
    decode_head=dict(
        type="mmseg.FPNHead",
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=256,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(type="mmseg.CrossEntropyLoss", avg_non_ignore=True),
    ),
)
