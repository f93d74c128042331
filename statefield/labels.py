"""The one label value that every floor agrees on."""

UNLABELLED = (
    -1
)  # the mask value of pixels that carry no label: padding, and what an annotator or a field of view left out
