"""Remote sensing: what has changed between two images, what a pixel's spectrum shows, what a scene is."""
