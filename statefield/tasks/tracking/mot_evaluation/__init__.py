"""`statefield mot evaluate`: HOTA, CLEAR, Identity, VACE and track mAP, equal to TrackEval 1.3.0."""
