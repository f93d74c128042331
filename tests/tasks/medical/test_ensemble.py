"""An ensemble predicts the mean of its members' class probabilities."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from fakes.medical import write_pairs
from torch import nn

from statefield.errors import ConfigError
from statefield.tasks.common.config import NormalisationConfig, TrainerConfig
from statefield.tasks.medical.ensemble import Ensemble, load_ensemble
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import fit


class _Constant(nn.Module):
    """Gives the same class probabilities everywhere, and counts how often it was asked."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log() + 3.0)  # logits need not be normalised
        self.asked = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return self.logits.view(1, -1, 1, 1).expand(len(image), -1, *image.shape[2:])


def test_its_probabilities_are_the_mean_by_hand():
    """(0.9, 0.1), (0.4, 0.6), (0.2, 0.8): the mean is (0.5, 0.5), while the mean of logits would favour class 1."""
    ensemble = Ensemble([_Constant(0.9, 0.1), _Constant(0.4, 0.6), _Constant(0.2, 0.8)])
    logits = ensemble(torch.zeros(2, 1, 4, 5))
    assert logits.shape == (2, 2, 4, 5)
    torch.testing.assert_close(logits.softmax(1), torch.full((2, 2, 4, 5), 0.5))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(2, 4, 5))  # they are logarithms of probabilities


def test_each_member_sees_a_window_once():
    members = [_Constant(0.9, 0.1), _Constant(0.4, 0.6)]
    Ensemble(members)(torch.zeros(1, 1, 4, 4))
    assert [member.asked for member in members] == [1, 1]


def test_a_class_that_one_member_excludes_stays_a_number():
    logits = Ensemble([_Constant(1.0, 0.0), _Constant(0.5, 0.5)])(torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(logits.softmax(1).flatten(), torch.tensor([0.75, 0.25]))


def test_an_ensemble_needs_a_member():
    with pytest.raises(ConfigError, match="no nets"):
        Ensemble([])
    with pytest.raises(ConfigError, match="no run given"):
        load_ensemble([])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Runs that differ in one thing from the first."""
    place = tmp_path_factory.mktemp("runs")
    first = SegmentationRecipe(
        run=place / "first",
        data=DataConfig(root=write_pairs(place / "data", num_cases=6), patch_size=(32, 32), batch_size=2),
        model=ModelConfig(
            encoder="test_convnext", detail_channels=2, decoder_args={"decoder_channels": [8, 8, 8, 8, 8]}
        ),
        trainer=TrainerConfig(accelerator="cpu", threads=1, fast_dev_run=True),
    )
    other_scale = dataclasses.replace(first.data, normalisation=NormalisationConfig("range", low=0, high=255))
    recipes = {
        "first": first,
        "second": dataclasses.replace(first, seed=1),
        "scaled": dataclasses.replace(first, data=other_scale),
    }
    for name, recipe in recipes.items():
        fit(dataclasses.replace(recipe, run=place / name))
    return {name: place / name for name in recipes}


def test_runs_join_and_a_single_one_stays_itself(runs):
    alone = [load_ensemble([runs[name]]) for name in ("first", "second")]
    both = load_ensemble([runs["first"], runs["second"]])
    image = torch.randn(1, 3 if len(both.channels) == 3 else 1, 32, 32)
    with torch.no_grad():
        members = [run.net(image).softmax(1) for run in alone]
        assert not torch.equal(*members)
        torch.testing.assert_close(both.net(image).softmax(1), (members[0] + members[1]) / 2)
    assert both.task.num_parameters == sum(run.task.num_parameters for run in alone)
    assert not any(module.training for module in both.net.modules())


def test_runs_that_see_images_otherwise_are_refused(runs):
    with pytest.raises(ConfigError, match=r"scaled cannot join .*first.* its normalisation is"):
        load_ensemble([runs["first"], runs["scaled"]])
