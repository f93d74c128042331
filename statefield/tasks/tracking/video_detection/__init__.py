"""MAMBA, detection of objects in videos with a memory of frames before: nets, training, and use frame by frame."""
