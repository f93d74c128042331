"""Every score that MONAI has too, on random and real label maps: equal class by class, NaN included."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from monai.metrics import (
    DiceMetric,
    MeanIoU,
    compute_confusion_matrix_metric,
    compute_hausdorff_distance,
    compute_surface_dice,
    get_confusion_matrix,
)
from scipy.ndimage import gaussian_filter

from statefield.datasets.readers.nifti import read_labels
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
TOLERANCE_MM = 1.5

pytestmark = [
    pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class:UserWarning"),
    pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning"),
]


def _smooth(shape, num_classes, seed, sigma=1.5):
    """Blobs of `num_classes` classes that touch one another and the image's border."""
    noise = np.random.default_rng(seed).normal(size=(num_classes, *shape))
    return np.argmax([gaussian_filter(part, sigma) for part in noise], axis=0)


def _one_hot(labels, num_classes):
    return torch.nn.functional.one_hot(torch.as_tensor(np.ascontiguousarray(labels)), num_classes).movedim(-1, 0)[None]


def _assert_equal_to_monai(prediction, target, num_classes, spacing, *, without_overlap=()):
    """Compare all scores of all classes; classes in `without_overlap` are on one side alone, or on none."""
    metrics = SegmentationMetrics(tuple(f"class_{k}" for k in range(num_classes)), tolerance_mm=TOLERANCE_MM)
    ours = metrics.observe(prediction, target, case="a", spacing=spacing).cases["a"].values
    pair = [_one_hot(labels, num_classes) for labels in (prediction, target)]
    dice = DiceMetric(reduction="none", ignore_empty=True)(*pair).numpy()[0]
    iou = MeanIoU(reduction="none", ignore_empty=True)(*pair).numpy()[0]
    counts = get_confusion_matrix(*pair)
    rates = {
        name: compute_confusion_matrix_metric(name, counts).numpy()[0]
        for name in ("sensitivity", "specificity", "precision")
    }
    options = {"include_background": False, "spacing": list(spacing)}
    hd95 = compute_hausdorff_distance(*pair, percentile=95, **options).numpy()[0]
    nsd = compute_surface_dice(*pair, class_thresholds=[TOLERANCE_MM] * (num_classes - 1), **options).numpy()[0]
    in_target = np.array([(target == k).any() for k in range(num_classes)])
    # MONAI leaves out a class that the target lacks; we give 0 where it was invented, as docs/metrics.md has it
    for name, theirs in (("Dice", dice), ("IoU", iou)):
        np.testing.assert_allclose(ours[name][in_target], theirs[in_target], atol=1e-6, err_msg=name)
    for name, theirs in rates.items():
        np.testing.assert_allclose(ours[name], theirs, atol=1e-6, err_msg=name)
    both = [k for k in range(1, num_classes) if k not in without_overlap]
    np.testing.assert_allclose(ours["HD95_mm"][both], hd95[[k - 1 for k in both]], rtol=1e-5, err_msg="HD95_mm")
    nsd_name = f"NSD_{TOLERANCE_MM:g}mm"
    np.testing.assert_allclose(ours[nsd_name][1:], nsd, atol=1e-6, err_msg=nsd_name)
    assert np.isnan(ours["HD95_mm"][list(without_overlap)]).all()
    assert not np.isfinite(hd95[[k - 1 for k in without_overlap]]).any()


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 33), (1.0, 1.0)), ((31, 40), (0.7, 2.3)), ((9, 22, 20), (5.0, 0.8, 0.9)), ((14, 15, 16), (1.0, 1.0, 1.0))],
)
def test_random_maps_with_touching_classes_and_anisotropic_spacing(shape, spacing):
    prediction, target = _smooth(shape, 4, 0), _smooth(shape, 4, 1)
    mixed = np.where(np.random.default_rng(2).random(shape) < 0.7, target, prediction)
    _assert_equal_to_monai(mixed, target, 4, spacing)
    _assert_equal_to_monai(prediction, target, 4, spacing)


def test_many_classes():
    target = _smooth((12, 20, 21), 25, 3)
    prediction = np.roll(target, 1, axis=2)
    _assert_equal_to_monai(prediction, target, 25, (2.5, 0.7, 0.7))


def test_classes_that_are_missed_invented_or_nowhere():
    target, prediction = _smooth((10, 16, 17), 6, 4), _smooth((10, 16, 17), 6, 5)
    target[target == 2], prediction[prediction == 3] = 0, 0  # 2 is invented, 3 is missed
    for labels in (target, prediction):
        labels[labels == 4] = 0  # nowhere
    _assert_equal_to_monai(prediction, target, 6, (3.0, 1.0, 1.2), without_overlap=(2, 3, 4))


def test_masks_along_the_image_border():
    target, prediction = np.zeros((2, 8, 12, 12), np.int64)
    target[:3], prediction[:4, 1:] = 1, 1
    target[5:, 6:, :], prediction[5:, 5:, 1:] = 2, 2
    _assert_equal_to_monai(prediction, target, 3, (4.0, 1.0, 1.0))


@pytest.mark.shared_data
def test_real_organs_of_ct():
    folder = DATA / "medical/totalsegmentator_examples"
    if not folder.is_dir():
        pytest.skip(f"no real label maps at {folder} (STATEFIELD_DATA)")
    target, prediction = (read_labels(folder / name) for name in ("example_seg.nii.gz", "example_seg_fast.nii.gz"))
    labels = np.unique(target.array)[9:14]  # other organs than test_segmentation_metrics.py takes
    maps = [
        np.where(np.isin(v.array[0], labels), np.searchsorted(labels, v.array[0]) + 1, 0) for v in (prediction, target)
    ]
    alone = [k for k in range(1, len(labels) + 1) if len({bool((m == k).any()) for m in maps}) > 1]
    _assert_equal_to_monai(*maps, len(labels) + 1, target.spacing, without_overlap=alone)


@pytest.mark.shared_data
def test_real_hearts_of_acdc():
    files = sorted((DATA / "medical/acdc_h5").rglob("*.h5"))
    if not files:
        pytest.skip(f"no ACDC at {DATA / 'medical/acdc_h5'} (STATEFIELD_DATA)")
    with h5py.File(files[0]) as file:
        target = file["label"][()].astype(np.int64)
    assert set(np.unique(target)) == {0, 1, 2, 3}
    prediction = np.roll(target, (0, 2, -1), axis=(0, 1, 2))
    prediction[0] = 0
    _assert_equal_to_monai(prediction, target, 4, (10.0, 1.5, 1.5))
