model = dict(type="OvAnomalyDetector", guide="dinov2_vits14", method=dict(type="patch-memory"))
