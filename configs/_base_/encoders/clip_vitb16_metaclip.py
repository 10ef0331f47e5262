model = dict(type="OvSegmentor", encoder="clip_vitb16_metaclip")
