default_scope = "ovseg"
custom_imports = dict(imports=["ovseg.mm"])
custom_hooks = [dict(type="ProgressBarHook")]
default_hooks = dict(logger=dict(type="LoggerHook", interval=200))
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork"))
log_level = "INFO"
test_cfg = dict(type="TestLoop")
