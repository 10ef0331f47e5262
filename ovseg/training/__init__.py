"""Training as plain torch: losses and small trainable modules, no framework."""
