# Its learned prompts are named on the command line, after the config.
model = dict(type="OvAnomalyDetector", encoder="clip_vitl14_336_openai", method=dict(type="anomalyclip"))
