"""Backbones learn: real pictures of handwritten digits, a few epochs, accuracy on pictures that were held out."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from statefield.backbones import create_model

# A twin of each family, small enough for two cores: widths and depths are ours, all else is the family's.
TWINS = {
    "spatial_mamba_nano": {"dims": 24, "depths": (1, 1, 2, 1), "drop_path_rate": 0.0},
    "vmamba_tiny_s1l8": {"dims": 24, "depths": (1, 1, 2, 1), "drop_path_rate": 0.0},
    "vim_tiny": {"img_size": 32, "patch_size": 4, "dim": 64, "num_layers": 3, "d_state": 8},
}
EPOCHS, BATCH, PEAK_RATE, SHIFT_PX = 14, 32, 4e-3, 1


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1437 pictures to learn from and 360 to test, each digit in the same share: [N, 1, 32, 32] in -1 ... 1, [N]."""
    found = load_digits()  # 8 x 8 pixels of 0 to 16, as scikit-learn ships them
    images = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    images = functional.interpolate(images, scale_factor=4, mode="bilinear", align_corners=False)
    labels = torch.from_numpy(found.target).long()
    learn, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=found.target)
    return images[learn], labels[learn], images[test], labels[test]


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_a_family_learns_digits(name, digits):
    images, labels, test_images, test_labels = digits
    torch.manual_seed(0)
    model = create_model(name, in_chans=1, num_classes=10, **TWINS[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            moved = torch.roll(images[chosen], torch.randint(-SHIFT_PX, SHIFT_PX + 1, (2,)).tolist(), dims=(2, 3))
            loss = functional.cross_entropy(model(moved), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(test_images).argmax(1) == test_labels).float().mean().item()
    assert right >= 0.97, f"{name}: {right:.1%} of {len(test_labels)} held-out digits are right after {EPOCHS} epochs"
