"""Tracks on disk: of many objects (MOTChallenge text, KITTI labels), of one object, and the folders they ship in."""
