model = dict(type="OvAnomalyDetector", encoder="ViT-B-16-plus-240:laion400m_e32", method=dict(type="winclip"))
