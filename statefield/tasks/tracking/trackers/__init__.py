"""Trackers of many objects by detections alone: SORT, ByteTrack, OC-SORT and MambaTrack, over any motion model.

tracker = TRACKERS["bytetrack"]()
for boxes, scores in detections:            # frame by frame
    tracks = tracker.step(boxes, scores)
"""

from statefield.tasks.tracking.trackers.byte_track import ByteTrack
from statefield.tasks.tracking.trackers.mamba_track import MambaTrack
from statefield.tasks.tracking.trackers.oc_sort import OCSort
from statefield.tasks.tracking.trackers.sort import Sort
from statefield.tasks.tracking.trackers.tracker import TRACKERS, FrameTracks, Tracker

__all__ = ["TRACKERS", "ByteTrack", "FrameTracks", "MambaTrack", "OCSort", "Sort", "Tracker"]
