"""Image towers: RGB in [0, 1] to patch features."""
