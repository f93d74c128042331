"""Starting, keeping and replacing run folders; the history file."""

from __future__ import annotations

import itertools

import pytest

from statefield.errors import ConfigError
from statefield.tasks.common.module import rate_factor, step_seed
from statefield.tasks.common.run_folder import RunFolder, read_history, write_history


def test_a_new_folder_gets_its_config(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.start("seed: 1\n", overwrite=False)
    assert folder.config.read_text() == "seed: 1\n"
    folder.require()


def test_a_run_that_is_there_is_refused_with_both_ways_out(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start("seed: 1\n", overwrite=False)
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        folder.start("seed: 2\n", overwrite=False)
    assert folder.config.read_text() == "seed: 1\n"


def test_overwrite_replaces_the_whole_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start("seed: 1\n", overwrite=False)
    folder.metrics.write_text("{}")
    folder.start("seed: 2\n", overwrite=True)
    assert [path.name for path in folder.root.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder(tmp_path).start("seed: 1\n", overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_taken(tmp_path):
    RunFolder(tmp_path).start("seed: 1\n", overwrite=False)
    assert (tmp_path / "config.yaml").exists()


def test_a_folder_without_a_run_is_named_with_the_reason(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        RunFolder(tmp_path / "nowhere").require()
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        RunFolder(tmp_path).require()


def test_history_comes_back_with_gaps_as_none(tmp_path):
    rows = [{"epoch": 0, "train_loss": 0.5}, {"epoch": 1, "train_loss": 0.25, "Dice/a": 0.75}]
    write_history(tmp_path / "metrics.csv", rows)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "epoch,train_loss,Dice/a"
    assert read_history(tmp_path / "metrics.csv") == [
        {"epoch": 0.0, "train_loss": 0.5, "Dice/a": None},
        {"epoch": 1.0, "train_loss": 0.25, "Dice/a": 0.75},
    ]


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_the_rate_rises_over_the_warm_up_and_never_after_it(schedule):
    factors = [rate_factor(step, total=50, warmup=5, schedule=schedule) for step in range(60)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[4:]))
    assert factors[-1] == (1.0 if schedule == "constant" else pytest.approx(0.01))


def test_poly_follows_its_formula():
    assert rate_factor(25, total=100, warmup=0, schedule="poly") == pytest.approx(0.75**0.9)


def test_step_seeds_are_distinct_and_stable():
    seeds = {step_seed(seed, batch) for seed in range(3) for batch in range(100)}
    assert len(seeds) == 300
    assert step_seed(0, 0) == step_seed(0, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_start_that_is_cut_short_leaves_the_run_that_was_there_and_the_next_one_replaces_it(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    folder.start("seed: 1\n", overwrite=False, about={"splits": {}})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("statefield.tasks.common.run_folder.write_json", _cut_short)
        folder.start("seed: 2\n", overwrite=True, about={})
    assert folder.config.read_text() == "seed: 1\n"
    assert folder.dataset.exists()
    folder.start("seed: 3\n", overwrite=True)
    assert [path.name for path in folder.root.iterdir()] == ["config.yaml"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_new_folder_has_its_dataset_or_is_not_there(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr("statefield.tasks.common.run_folder.write_json", _cut_short)
    with pytest.raises(KeyboardInterrupt):
        folder.start("seed: 1\n", overwrite=False, about={})
    assert not folder.root.exists()


def test_behind_a_link_the_folder_is_made_where_the_link_leads(tmp_path):
    (tmp_path / "large_disk" / "empty").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "large_disk" / "empty")
    folder = RunFolder(tmp_path / "run")
    folder.start("seed: 1\n", overwrite=False)
    assert folder.root.is_symlink()
    assert (tmp_path / "large_disk" / "empty" / "config.yaml").read_text() == "seed: 1\n"


def _cut_short(*_):
    raise KeyboardInterrupt
