"""Motion models: where tracks are expected in the next frame. Kalman filters need no torch; MTP is a net."""

from statefield.errors import ConfigError
from statefield.tasks.tracking.motion.kalman import ByteKalman, ConstantVelocity, SortKalman, Still
from statefield.tasks.tracking.motion.model import MOTION_MODELS, MotionModel

__all__ = ["MOTION_MODELS", "ByteKalman", "ConstantVelocity", "MotionModel", "SortKalman", "Still"]


@MOTION_MODELS.register("mtp")
def _without_weights() -> MotionModel:
    """MTP is of use with trained weights only, so nothing makes one by its name alone."""
    raise ConfigError(
        "the motion model mtp needs weights: train it with `statefield mot train` and name its run folder with "
        "--weights, or choose a Kalman filter, such as --motion kalman_byte."
    )
