# SAN as published: mmseg's own config, sizes and test pipeline. Its checkpoint is named on the command line.
model = dict(
    type="MMSegModel",
    segmentor="mmseg::san/san-vit-b16_coco-stuff164k-640x640.py",
    probability="value",
)
