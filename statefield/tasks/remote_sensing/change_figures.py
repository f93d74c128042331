"""Pictures of a pair: both dates, the truth, and what a net says, with its hits and errors in colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.labels import UNLABELLED
from statefield.tasks.common.figures import Pixels, class_colour, displayed, tinted
from statefield.tasks.remote_sensing.change_kinds import ChangeKind

# Hits are white and what is unchanged stays dark, as in the field's papers; the errors' colours are those of Okabe and
# Ito (2008), which people with any of the common colour-vision deficiencies can tell apart.
OUTCOME_COLOURS = {"found": "#FFFFFF", "false alarm": "#D55E00", "missed": "#56B4E9", "not labelled": "#5A5A5A"}
_TRUE_COLOURS = (("red", "green", "blue"), ("B04", "B03", "B02"))  # names of bands, of pictures and of Sentinel-2
_FADED = 0.25


def pictures_of(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    channels: Sequence[str],
    masks: Mapping[str, NDArray[Any]],
    maps: Mapping[str, NDArray[Any]],
    kind: ChangeKind,
) -> dict[str, Pixels]:
    """Title -> 8-bit [H, W, 3].

    Args: before, after: [C, H, W] as stored, bands named by `channels`. masks: the targets. maps: of `ChangeKind.maps`.
    """
    first, second = (displayed(shown_bands(image, channels)) for image in (before, after))
    pictures = {"before": first, "after": second}
    truth, found = masks[kind.gate], maps[kind.layers[0].name]
    if kind.name == "binary":
        pictures["truth"] = tinted(second, np.where(truth > 0, 1, 0))
    elif kind.name == "semantic":
        for date, picture in (("before", first), ("after", second)):
            pictures[f"truth {date}"] = tinted(picture, masks[f"{date}_mask"].clip(min=0))
        for date, picture in (("before", first), ("after", second)):
            pictures[f"prediction {date}"] = tinted(picture, maps[date])
    else:
        pictures["truth"] = tinted(second, masks["mask"].clip(min=0))
        pictures["prediction"] = tinted(second, maps["damage"])
    pictures["outcome" if kind.name == "binary" else f"outcome, {kind.layers[0].name}"] = outcome(second, truth, found)
    return pictures


def outcome(picture: Pixels, target: NDArray[Any], prediction: NDArray[Any]) -> Pixels:
    """`picture`, faded, with every pixel that is or is called class 1 in the colour of `OUTCOME_COLOURS`."""
    made = (picture.astype(np.float64) * _FADED).round().astype(np.uint8)
    kinds = {
        "found": (target > 0) & (prediction > 0),
        "false alarm": (target == 0) & (prediction > 0),
        "missed": (target > 0) & (prediction == 0),
        "not labelled": target == UNLABELLED,
    }
    for name, pixels in kinds.items():
        colour = OUTCOME_COLOURS[name]
        made[pixels] = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return made


def legend_of(kind: ChangeKind) -> dict[str, dict[str, str]]:
    """What the colours mean, for `write_report`."""
    legend = {f"outcome ({kind.layers[0].classes[1]})": OUTCOME_COLOURS}
    layer = kind.layers[-1] if kind.name != "binary" else kind.layers[0]
    return {"classes": {name: class_colour(index) for index, name in enumerate(layer.classes) if index}, **legend}


def shown_bands(image: NDArray[np.float32], channels: Sequence[str]) -> NDArray[np.float32]:
    """The bands of true colours where there are such, else the first three, or the first one."""
    for names in _TRUE_COLOURS:
        if all(name in channels for name in names):
            return image[[channels.index(name) for name in names]]
    return image[: 3 if len(image) >= 3 else 1]
