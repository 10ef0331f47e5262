# CAT-Seg as published: the project's own config, sizes and test pipeline; the project lies beside the
# package:
# --cfg-options model.project=CHECKOUT/projects/CAT-Seg. Its checkpoint is named on the command line.
model = dict(
    type="MMSegModel",
    segmentor="configs/cat_seg/catseg_vitl-swin-b_4xb1-warmcoslr2e-4_adamw-80k_coco-stuff164k_384x384.py",
    project="projects/CAT-Seg",
)
