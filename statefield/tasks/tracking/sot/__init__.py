"""Single-object tracking: how each benchmark scores it."""
