# CAT-Seg as published: the project's own config, sizes and test pipeline; the project lies beside the
# package:
# --cfg-options model.project=CHECKOUT/projects/CAT-Seg. Its checkpoint is named on the command line.
model = dict(
    type="MMSegModel",
    segmentor="configs/cat_seg/catseg_vitb-r101_4xb2-warmcoslr2e-4-adamw-80k_coco-stuff164k-384x384.py",
    project="projects/CAT-Seg",
)
