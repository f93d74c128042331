"""Made-up sequences with one object to follow: a textured square or disc over a textured ground, with its boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 128)  # height, width


def moving_target(seed: int, num_frames: int, size: tuple[int, int] = SIZE) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames uint8 [H, W, 3], and boxes [T, 4], x, y, width, height: smooth motion, slowly changing size."""
    rng = np.random.default_rng(seed)
    height, width = size
    ground = _texture(rng, height, width, contrast=35)
    side = int(rng.integers(18, 27))
    skin = np.clip(_texture(rng, 64, 64, contrast=60) * 0.5 + _colour(rng), 0, 255)
    is_disc = bool(rng.integers(2))
    phases, speeds = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.06, 0.14, 3)
    frames, boxes = [], []
    for number in range(num_frames):
        wide = side * (1 + 0.15 * np.sin(phases[2] + 0.5 * speeds[2] * number))
        edge = round(wide)
        x = round((width - edge) * (0.5 + 0.45 * np.sin(phases[0] + speeds[0] * number)))
        y = round((height - edge) * (0.5 + 0.45 * np.sin(phases[1] + speeds[1] * number)))
        frame = ground.copy()
        places = np.linspace(0, 63, edge).astype(int)
        patch = skin[places[:, None], places]
        rows, columns = np.mgrid[:edge, :edge] - (edge - 1) / 2
        inside = (rows**2 + columns**2 <= (edge / 2) ** 2) if is_disc else np.ones((edge, edge), bool)
        frame[y : y + edge, x : x + edge][inside] = patch[inside]
        frames.append(np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8))
        boxes.append((x, y, edge, edge))
    return frames, np.array(boxes, dtype=np.float64)


def write_otb(root: Path, seeds: dict[str, int], num_frames: int, size: tuple[int, int] = SIZE) -> Path:
    """Sequences in OTB's layout: NAME/img/0001.png and NAME/groundtruth_rect.txt."""
    for name, seed in seeds.items():
        frames, boxes = moving_target(seed, num_frames, size)
        folder = root / name / "img"
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames, start=1):
            Image.fromarray(frame).save(folder / f"{number:04d}.png")
        rows = [",".join(f"{value:g}" for value in box) for box in boxes]
        (root / name / "groundtruth_rect.txt").write_text("\n".join(rows) + "\n")
    return root


def _texture(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    """Smooth noise of two scales, float [H, W, 3] about 128."""
    noise = np.zeros((height, width, 3))
    for cell in (4, 12):
        coarse = rng.normal(size=(height // cell + 2, width // cell + 2, 3))
        noise += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
    return 128 + contrast * noise / np.sqrt(2)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Something bright or dark in each channel, so that no target is as grey as the ground."""
    return np.where(rng.random(3) < 0.5, rng.uniform(-20, 20, 3), rng.uniform(90, 140, 3))
