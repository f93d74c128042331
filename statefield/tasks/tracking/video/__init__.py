"""Objects in videos: how their detection is scored."""
