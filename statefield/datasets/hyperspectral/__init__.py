"""Hyperspectral scenes: one cube of reflectances or radiances, and the class of some of its pixels."""

import statefield.datasets.hyperspectral.indian_pines
import statefield.datasets.hyperspectral.published  # noqa: F401  importing a layout files it in SCENE_ADAPTERS
from statefield.datasets.hyperspectral.adapter import SCENE_ADAPTERS, Scene, SceneAdapter, open_scene

__all__ = ["SCENE_ADAPTERS", "Scene", "SceneAdapter", "open_scene"]
