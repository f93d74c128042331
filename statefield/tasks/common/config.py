"""The settings that tasks of every field share, as frozen dataclasses. Imports no torch: `--help` must answer at once.

A recipe (YAML) and the command line fill these through jsonargparse; the classes that do the work take them whole, so
that a setting has one name everywhere: `trainer.max_epochs` in the recipe is `config.max_epochs` in the code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from statefield.labels import UNLABELLED as UNLABELLED


@dataclass(frozen=True)
class NormalisationConfig:
    """How intensities of one case become net inputs; each channel by itself.

    Args:
        method: "zscore" (mean 0, standard deviation 1), "zscore_nonzero" (statistics over voxels that are not 0; voxels
            that are 0 stay 0: for skull-stripped MR), "range" (`low` becomes 0, `high` becomes 1: for CT and other
            calibrated intensities), "ct" (clipped to `low` and `high`, then less `mean`, over `std`, the same for
            every case: what nnU-Net does with CT) or "none".
        clip_percentiles: clip first to these percentiles (0 to 100) of the voxels counted; null: do not.
        low: with "range", the intensity that becomes 0, in the file's units; with "range" and "ct", values below are
            clipped.
        high: with "range", the intensity that becomes 1; with "range" and "ct", values above are clipped.
        mean: with "ct", the intensity that becomes 0: the mean of the foreground of the training cases.
        std: with "ct", what one unit of the input is: the standard deviation of that foreground.
    """

    method: Literal["zscore", "zscore_nonzero", "range", "ct", "none"] = "zscore"
    clip_percentiles: tuple[float, float] | None = None
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class TransformConfig:
    """One step of an explicit augmentation list.

    Args:
        name: an albumentations transform ("HorizontalFlip"), or the full import path of one of your own.
        args: its arguments.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)


AugmentPreset = Literal["none", "flips", "medical", "natural"]


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: a Dice term and a pixel term, and if asked for a boundary term.

    Args:
        kind: "dice_ce" (Dice + cross-entropy) or "dice_focal" (Dice + focal).
        dice_weight: weight of the Dice term.
        pixel_weight: weight of the cross-entropy or focal term.
        boundary_weight: weight of the signed-distance boundary term (Kervadec et al. 2019); 0: none.
        include_background: count class 0 in the Dice term.
        pooled_dice: sum the Dice over the batch before dividing: steadier where a class is rare.
        focal_gamma: the focal term's exponent.
        class_weights: one weight per class for the pixel term; null: equal.
        label_smoothing: of the cross-entropy, 0 to 1.
    """

    kind: Literal["dice_ce", "dice_focal"] = "dice_ce"
    dice_weight: float = 1.0
    pixel_weight: float = 1.0
    boundary_weight: float = 0.0
    include_background: bool = False
    pooled_dice: bool = True
    focal_gamma: float = 2.0
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class TrainerConfig:
    """How long, how precise, on what, and how often to save.

    Args:
        max_epochs: epochs to train.
        steps_per_epoch: batches in an epoch; null: one pass over the training slices, or as many patches as cover the
            training volumes.
        accelerator: "auto", "cpu" or "gpu".
        devices: GPUs (or CPU processes) of each machine that train together; "auto": all GPUs of the machine, or one
            CPU process.
        num_nodes: machines that train together, started by torchrun or SLURM.
        strategy: "ddp" (each device has the net), "fsdp" (FSDP2: weights, gradients and moments are sharded) or "auto":
            ddp for several devices.
        precision: "32-true" or "bf16-mixed".
        threads: CPU threads; null: all cores.
        gradient_clip: largest gradient norm; null: unbounded.
        max_skipped_steps: a step whose gradient is infinite or NaN is left out; so many in a row end the training.
        accumulate: batches per optimiser step.
        save_every_steps: write `checkpoints/last.ckpt` each so many steps too; null: at the end of each epoch only.
        val_every_epochs: validate each so many epochs; must divide max_epochs, so that the last epoch is validated.
        fast_dev_run: a smoke test: two steps, one validation case, one test case, every file written.
    """

    max_epochs: int = 100
    steps_per_epoch: int | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int | None = None
    gradient_clip: float | None = 1.0
    max_skipped_steps: int = 10
    accumulate: int = 1
    save_every_steps: int | None = None
    val_every_epochs: int = 1
    fast_dev_run: bool = False


@dataclass(frozen=True)
class InferenceConfig:
    """How a whole slice is predicted from windows.

    Args:
        roi: window size in pixels, as many numbers as the training patch has; null: the training patch.
        overlap: share of a window that its neighbour covers too, 0 to below 1.
        weighting: how overlapping windows blend.
        batch_size: windows per forward pass.
        postprocess: "auto" looks, in volumes, for classes of which only the largest component should be kept, on
            held-out predictions (nnU-Net's rule), and applies what it found; "none" does not.
        postprocess_min_cases: with fewer held-out cases nothing is looked for: one slab of a volume once gained 0.0003
            of Dice where the test cases lost 0.02.
        mirror: average predictions over mirrored copies in test and prediction (4 x slower); validation does without.
    """

    roi: tuple[int, int] | tuple[int, int, int] | None = None
    overlap: float = 0.5
    weighting: Literal["gaussian", "constant"] = "gaussian"
    batch_size: int = 8
    postprocess: Literal["auto", "none"] = "auto"
    postprocess_min_cases: int = 5
    mirror: bool = False
