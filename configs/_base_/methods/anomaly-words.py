# Words of order and disorder on a segmentation method's score map.
model = dict(type="OvAnomalyDetector", encoder="clip_vitb16_openai", method=dict(type="sclip"))
