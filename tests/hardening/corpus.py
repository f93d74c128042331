"""Every bad input, by group."""

from __future__ import annotations

from hardening import checkpoints, cubes, events, images, json_files, recipes, run_folders, served, tracks
from hardening.case import Case

GROUPS: dict[str, list[Case]] = {
    "pictures": images.pictures(),
    "volumes": images.volumes(),
    "tracks": [*tracks.many_objects(), *tracks.detections(), *tracks.single_objects()],
    "json": [*json_files.detection_scores(), *json_files.linked_detections(), *json_files.regions()],
    "checkpoints": [*checkpoints.converted(), *checkpoints.in_runs()],
    "events": [*events.recordings(), *events.environment()],
    "cubes": cubes.cubes(),
    "rasters": run_folders.rasters(),
    "runs": run_folders.runs(),
    "exported": served.exported(),
    "app": served.app(),
    "recipes": [*recipes.recipes(), *recipes.environment(), *recipes.lists()],
}
