"""`evaluate_maps` and `statefield change evaluate`: published networks' maps, codes of change, and what is refused."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from fakes.change import write_tiff
from fakes.medical import write_picture

from statefield.cli.main import main
from statefield.errors import ConfigError, DataError, DatasetLayoutError, LabelError, ShapeError
from statefield.tasks.remote_sensing.change_evaluate import evaluate_maps

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
SAMPLES = DATA / "change_detection/changeformer_samples"
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 0, 1]])
GUESS = np.array([[0, 1, 1, 1], [0, 0, 0, 0]])  # TP 2, FP 1, FN 1, TN 4


def _folder(root: Path, maps: dict[str, np.ndarray]) -> Path:
    for name, values in maps.items():
        write_picture(root / name, values.astype(np.uint8))
    return root


@pytest.mark.parametrize("codes", [(1, 0), (255, 0)])
def test_scores_by_hand_whatever_the_code(tmp_path, codes):
    changed, _ = codes
    predictions = _folder(tmp_path / "p", {"a.png": GUESS * changed})
    write_tiff(tmp_path / "l" / "a.tif", (TRUTH + 1).astype(np.uint8), crs=None)
    evaluation = evaluate_maps(predictions, tmp_path / "l")
    assert evaluation.codes == (f"0/{changed}", "1/2")
    values = evaluation.scores.values
    assert values["F1/change (pooled)"] == pytest.approx(4 / 6)
    assert values["IoU/change (pooled)"] == pytest.approx(2 / 4)
    assert values["OA (pooled)"] == pytest.approx(6 / 8)


def test_scores_are_of_all_pixels_together_and_files_that_show_one_class_follow_the_others(tmp_path):
    predictions = _folder(tmp_path / "p", {"a.png": GUESS * 255, "b.png": np.full((2, 2), 255)})
    labels = _folder(tmp_path / "l", {"a.png": TRUTH, "b.png": np.ones((2, 2))})
    summary = evaluate_maps(predictions, labels).summary()
    assert summary["pixels"] == {"TP": 6, "FP": 1, "FN": 1, "TN": 4}
    assert summary["scores"]["F1/change (pooled)"] == pytest.approx(12 / 14)
    assert summary["cases"]["b"]["F1/change (pooled)"] == 1.0


def test_an_ignored_value_is_scored_nowhere(tmp_path):
    truth = TRUTH * 255
    truth[0, 1] = 128  # where the false alarm is
    predictions, labels = _folder(tmp_path / "p", {"a.png": GUESS}), _folder(tmp_path / "l", {"a.png": truth})
    assert evaluate_maps(predictions, labels, ignore=128).summary()["pixels"] == {"TP": 2, "FP": 0, "FN": 1, "TN": 4}
    with pytest.raises(LabelError, match="3 values found"):
        evaluate_maps(predictions, labels)


def test_no_change_anywhere_gives_stated_values_and_notes(tmp_path):
    nothing = {"a.png": np.zeros((3, 3))}
    summary = evaluate_maps(_folder(tmp_path / "p", nothing), _folder(tmp_path / "l", nothing)).summary()
    assert summary["scores"]["F1/change (pooled)"] == 0.0
    assert any("F1/change is 0 / 0" in note for note in summary["notes"])


def test_the_command_prints_and_writes_json_and_csv(tmp_path, capsys):
    predictions, labels = _folder(tmp_path / "p", {"a.png": GUESS}), _folder(tmp_path / "l", {"a.png": TRUTH})
    words = ["change", "evaluate", str(predictions), str(labels)]
    assert main([*words, "--json", str(tmp_path / "s.json"), "--csv", str(tmp_path / "s.csv")]) == 0
    shown = capsys.readouterr().out
    assert "F1/change (pooled)" in shown and "0.6667" in shown
    stored = json.loads((tmp_path / "s.json").read_text())
    assert stored["scores"]["F1/change (pooled)"] == pytest.approx(2 / 3)
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == ["a", "all together"]
    assert rows[1]["TP"] == "2"


def test_a_list_names_the_cases_to_score(tmp_path):
    predictions = _folder(tmp_path / "p", {"a.png": GUESS})
    labels = _folder(tmp_path / "l", {"a.png": TRUTH, "b.png": TRUTH})
    with pytest.raises(DatasetLayoutError, match="no prediction of b"):
        evaluate_maps(predictions, labels)
    names = tmp_path / "names.txt"
    names.write_text("a.png\n")
    assert list(evaluate_maps(predictions, labels, names=names).cases) == ["a"]
    names.write_text("a\nb\n")
    with pytest.raises(DatasetLayoutError, match="no prediction of b"):
        evaluate_maps(predictions, labels, names=names)
    names.write_text("c\n")
    with pytest.raises(DatasetLayoutError, match="it names c"):
        evaluate_maps(predictions, labels, names=names)


def test_what_cannot_be_scored_is_refused_by_name(tmp_path):
    predictions = _folder(tmp_path / "p", {"a.png": GUESS})
    with pytest.raises(DatasetLayoutError, match="no such folder"):
        evaluate_maps(predictions, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="two folders, or two files"):
        evaluate_maps(predictions, predictions / "a.png")
    with pytest.raises(ShapeError, match=r"2 x 4 pixels but .* is 3 x 3"):
        evaluate_maps(predictions, _folder(tmp_path / "small", {"a.png": np.zeros((3, 3))}))
    with pytest.raises(DatasetLayoutError, match="no label of a"):
        evaluate_maps(predictions, _folder(tmp_path / "other", {"b.png": TRUTH}))
    with pytest.raises(LabelError, match=r"values 0 .*7"):
        evaluate_maps(predictions, _folder(tmp_path / "sevens", {"a.png": 7 * TRUTH}))
    with pytest.raises(LabelError, match="every value is 1"):
        evaluate_maps(_folder(tmp_path / "ones", {"a.png": np.ones((2, 4))}), predictions)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match="damaged"):
        evaluate_maps(tmp_path / "broken", predictions)


def test_different_codes_in_the_files_of_one_folder_are_refused(tmp_path):
    predictions = _folder(tmp_path / "p", {"a.png": GUESS, "b.png": GUESS * 255})
    labels = _folder(tmp_path / "l", {"a.png": TRUTH, "b.png": TRUTH})
    with pytest.raises(LabelError, match="the same in every file"):
        evaluate_maps(predictions, labels)


@pytest.mark.shared_data
def test_the_maps_of_published_networks_have_their_reference_scores_to_four_digits(tmp_path):
    if not SAMPLES.is_dir():
        pytest.skip(f"no stored predictions at {SAMPLES} (STATEFIELD_DATA)")
    reference = json.loads((DATA / "REFERENCE.json").read_text(encoding="utf-8"))["changeformer_predictions"]
    spelled = {"P": "Precision", "R": "Recall", "F1": "F1", "IoU": "IoU"}
    checked = 0
    for key, home, prefix in (("LEVIR7", "samples_LEVIR", "predict_CD_"), ("DSIFN10", "samples_DSIFN", "predict_")):
        for net, numbers in reference[key].items():
            target = tmp_path / f"{home}_{net}.json"
            words = [str(SAMPLES / home / f"{prefix}{net}"), str(SAMPLES / home / "label"), "--json", str(target)]
            # of the labels of LEVIR, seven have predictions
            assert main(["change", "evaluate", *words, "--list", str(SAMPLES / home / "list" / "demo.txt")]) == 0
            scores = json.loads(target.read_text())["scores"]
            for short, expected in numbers.items():
                assert round(scores[f"{spelled[short]}/change (pooled)"], 4) == expected, (home, net, short)
                checked += 1
    assert checked == 32
