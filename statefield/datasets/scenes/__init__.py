"""Sets of scenes: pictures of the ground, each of which belongs to one class as a whole."""

# importing a layout files it in SCENE_SETS; the general one comes first where layouts are listed
import statefield.datasets.scenes.folders

# isort: split
import statefield.datasets.scenes.published  # noqa: F401
from statefield.datasets.scenes.adapter import SCENE_SETS, LabelledScene, SceneSet, label_of, load_scene, open_scenes

__all__ = ["SCENE_SETS", "LabelledScene", "SceneSet", "label_of", "load_scene", "open_scenes"]
