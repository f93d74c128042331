"""The exception tree and the registry: what callers outside the package may rely on."""

import pytest

from statefield import errors
from statefield.registry import Registry


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (errors.ShapeError, ValueError),
        (errors.UnknownName, LookupError),
        (errors.ConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.LabelError, errors.DataError),
        (errors.DatasetLayoutError, FileNotFoundError),
        (errors.EmptySplit, errors.DatasetLayoutError),
        (errors.CheckpointError, RuntimeError),
        (errors.KernelUnavailable, RuntimeError),
    ],
)
def test_every_error_is_ours_and_a_builtin(ours, builtin):
    assert issubclass(ours, errors.StatefieldError)
    assert issubclass(ours, builtin)
    assert str(ours("one paragraph")) == "one paragraph"


def test_unknown_name_offers_the_nearest():
    message = str(errors.UnknownName.among("model", "spatial_mamba_tinny", ["spatial_mamba_tiny", "vim_small"]))
    assert message == "unknown model 'spatial_mamba_tinny': did you mean 'spatial_mamba_tiny'?"


def test_unknown_name_far_from_all_lists_them():
    assert (
        str(errors.UnknownName.among("route", "zzz", ["snake", "raster"]))
        == "unknown route 'zzz': known: raster, snake."
    )


def test_registry_holds_what_was_registered_in_order():
    registry: Registry[int] = Registry("number")
    registry.register("two")(2)
    registry.register("one")(1)
    assert list(registry.items()) == [("two", 2), ("one", 1)]
    assert "one" in registry and "three" not in registry


def test_registry_refuses_a_taken_name():
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    with pytest.raises(errors.ConfigError, match="the number name 'one' is taken"):
        registry.register("one")(11)
    assert registry["one"] == 1
