"""Following one object through pictures or events: MambaEVT's crops, losses, training, and its tracker frame by frame.

from statefield.tasks.tracking.single_object.training import load_tracker

tracker = load_tracker(Path("runs/mambaevt")).tracker()
tracker.start(first_frame, box)          # uint8 [H, W, 3]; x, y, width, height in pixels
for frame in frames:
    found = tracker.step(frame)          # found.box, found.score, found.is_lost
"""
