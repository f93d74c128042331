"""Backbones by name: ours, timm's, and names that nobody has."""

import pytest
import timm

from statefield import create_model, list_models
from statefield.backbones import BACKBONES
from statefield.errors import UnknownName


def test_our_backbones_are_listed_by_part_of_a_name_or_by_pattern():
    assert list_models("spatial") == [f"spatial_mamba_{size}" for size in ("nano", "tiny", "small", "base")]
    assert list_models("spatial*_t?ny") == ["spatial_mamba_tiny"]
    assert list_models("nothing") == []
    assert set(list_models()) == set(BACKBONES)
    assert set(BACKBONES) <= set(timm.list_models())


@pytest.mark.parametrize(
    ("typo", "meant"), [("spatial_mamba_tny", "spatial_mamba_tiny"), ("spatial_mamba-base", "spatial_mamba_base")]
)
def test_an_unknown_name_offers_the_nearest(typo, meant):
    with pytest.raises(UnknownName, match=f"unknown backbone '{typo}': did you mean .*'{meant}'"):
        create_model(typo)


def test_timms_own_models_are_built_too():
    model = create_model("convnext_atto", num_classes=0, depths=(1, 1, 1, 1))
    assert type(model).__module__.startswith("timm.")
