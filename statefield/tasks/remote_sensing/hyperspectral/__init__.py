"""Classes of the pixels of a hyperspectral scene, learnt from some of its pixels and tested on others apart."""
