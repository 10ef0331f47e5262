"""Steps from a score map to a sharper one."""
