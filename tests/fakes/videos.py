"""Fake videos with boxes: striped shapes that move over clutter, blurred or half hidden in some frames."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

CLASSES = ("disc", "square", "triangle")


def write_cocovid(
    root: Path,
    *,
    num_videos: int,
    num_frames: int = 8,
    size: tuple[int, int] = (96, 64),
    classes: tuple[str, ...] = CLASSES,
    seed: int = 0,
    degraded: float = 0.0,
    suffix: str = "jpg",
) -> Path:
    """`root/annotations.json` (CocoVID) and `root/VIDEO/000000.SUFFIX`; returns the annotations' path.

    Args: size: width and height. degraded: the share of frames that are blurred, or whose objects are half hidden.
    """
    rng = np.random.default_rng(seed)
    videos, images, annotations = [], [], []
    for number in range(1, num_videos + 1):
        name = f"video_{number:03d}"
        videos.append({"id": number, "name": name})
        frames, boxes, labels = moving_shapes(rng, num_frames, size, classes, degraded)
        (root / name).mkdir(parents=True)
        for index, frame in enumerate(frames):
            image = len(images) + 1
            file = f"{name}/{index:06d}.{suffix}"
            Image.fromarray(frame).save(root / file, quality=92)
            images.append(
                {"id": image, "video_id": number, "frame_id": index, "file_name": file}
                | {"width": size[0], "height": size[1]}
            )
            for track, (box, label) in enumerate(zip(boxes[index], labels, strict=True), start=1):
                if box is not None:
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1}
                        | {"instance_id": number * 100 + track, "bbox": box}
                    )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(classes)]
    path = root / "annotations.json"
    path.write_text(
        json.dumps({"videos": videos, "images": images, "categories": categories, "annotations": annotations})
    )
    return path


def moving_shapes(
    rng: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    classes: tuple[str, ...],
    degraded: float,
) -> tuple[list[np.ndarray], list[list[list[float] | None]], list[int]]:
    """Frames uint8 [H, W, 3]; per frame a box x, y, width, height for each object, None where it is out of view."""
    width, height = size
    clutter = cv2.resize(rng.integers(40, 170, (height // 8, width // 8, 3), dtype=np.uint8), size)
    clutter = np.clip(clutter + rng.normal(0, 10, clutter.shape), 0, 255).astype(np.uint8)
    count = int(rng.integers(1, 3))
    labels = [int(rng.integers(len(classes))) for _ in range(count)]
    sides = rng.uniform(0.3, 0.5, count) * height
    starts = rng.uniform([0.2 * width, 0.25 * height], [0.8 * width, 0.75 * height], (count, 2))
    speeds = rng.normal(0, 0.03 * width, (count, 2))
    textures = [_texture(rng, label, int(side)) for label, side in zip(labels, sides, strict=True)]
    frames, boxes = [], []
    for t in range(num_frames):
        frame, here = clutter.copy(), []
        for start, speed, side, (colours, mask) in zip(starts, speeds, sides, textures, strict=True):
            x, y = (start + t * speed - side / 2).round().astype(int)
            here.append(_paste(frame, colours, mask, x, y))
        if rng.random() < degraded:
            frame = _blurred(frame, rng) if rng.random() < 0.5 else _half_hidden(frame, here, clutter, rng)
        frames.append(frame)
        boxes.append(here)
    return frames, boxes, labels


def _blurred(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As if the camera had moved while the shutter was open."""
    length = int(rng.integers(7, 14))
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1 / length
    return cv2.filter2D(frame, -1, kernel if rng.random() < 0.5 else kernel.T)


def _half_hidden(
    frame: np.ndarray, boxes: list[list[float] | None], clutter: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Clutter from elsewhere in front of a side of each object; its box is still that of the whole."""
    elsewhere = clutter[::-1, ::-1]
    for left, top, width, height in [box for box in boxes if box is not None]:
        share = rng.uniform(0.45, 0.65)
        x, y = left + (0 if rng.random() < 0.5 else (1 - share) * width), top
        rows, columns = slice(int(y), int(y + height)), slice(int(x), int(x + share * width))
        frame[rows, columns] = elsewhere[rows, columns]
    return frame


def _texture(rng: np.random.Generator, label: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours [side, side, 3] and mask [side, side] of a shape: a disc, a square or a triangle, each with stripes."""
    y, x = np.mgrid[:side, :side]
    centre = (side - 1) / 2
    masks = (
        (x - centre) ** 2 + (y - centre) ** 2 <= (side / 2) ** 2,
        np.ones((side, side), bool),
        np.abs(x - centre) <= y / 2,
    )
    stripes = ((x, y, x + y)[label % 3] // 3) % 2
    light, dark = rng.integers(190, 256, 3), rng.integers(0, 40, 3)
    return np.where(stripes[..., None] == 1, light, dark).astype(np.uint8), masks[label % 3]


def _paste(frame: np.ndarray, colours: np.ndarray, mask: np.ndarray, x: int, y: int) -> list[float] | None:
    """Draw a shape with its corner at (x, y); its visible box, None where half of it or more is out of view."""
    height, width = frame.shape[:2]
    side = len(mask)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    if right - left < side / 2 or bottom - top < side / 2:
        return None
    part = (slice(top - y, bottom - y), slice(left - x, right - x))
    place = frame[top:bottom, left:right]
    place[mask[part]] = colours[part][mask[part]]
    return [float(left), float(top), float(right - left), float(bottom - top)]


def write_video(path: Path, frames: list[np.ndarray], rate: float = 10.0) -> Path:
    """An .mp4 of frames uint8 [H, W, 3]."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path
