"""`statefield models`: what the backbones cost and where their weights come from."""

from __future__ import annotations

import json

from statefield.cli.main import main


def test_the_table_has_a_row_a_model_and_marks_what_is_published(capsys):
    assert main(["models", "spatial_mamba_?i*"]) == 0
    said = capsys.readouterr().out
    header, tiny, *rest = said.splitlines()
    assert header.split()[:4] == ["name", "family", "parameters", "GMACs"]
    assert tiny.split()[:6] == ["spatial_mamba_tiny", "Spatial-Mamba", "26.7", "M", "4.42", "83.5"]
    assert tiny.endswith("https://github.com/EdwardChasel/Spatial-Mamba")
    assert "Apache-2.0 (repository)" in tiny
    assert " 7 pass, " in tiny
    assert "* published by the authors" in said
    assert len([line for line in rest if line.startswith("spatial")]) == 0


def test_json_has_exact_numbers(capsys):
    assert main(["models", "spatial_mamba_nano", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["parameters"], row["published_top1"]) == ("spatial_mamba_nano", 3_894_195, None)
    assert row["configuration_by"] == "statefield"
    assert row["weights_license"] == "no weights (ours)"
    assert (row["goldens"], row["goldens_pass"]) == (7, True)
    assert 0 < row["goldens_worst_error"] < 1e-4
    assert 0.5 < row["gmacs_at_224"] < 1.5


def test_a_pattern_that_nothing_matches_offers_the_nearest(capsys):
    assert main(["models", "spatial_mamba_smal1"]) == 2
    assert "did you mean 'spatial_mamba_small'" in capsys.readouterr().err
