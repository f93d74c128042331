"""Scan orders of an image as permutations of its pixels."""
