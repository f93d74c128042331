"""Tracking: many objects, one object on frames or events, objects in video; and how each is scored."""
