"""Bad input to `train`, `predict` and `evaluate`: the file is named, and nothing is left behind."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes.bad_input import Defect, accepted_labels, image_defects, label_defects, picture_defects, write_bomb_png
from fakes.medical import write_msd, write_nnunet, write_pairs, write_pairs_of_volumes, write_volume
from PIL import Image

from statefield.cli.main import main
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import train

SETTINGS = ["--data.patch_size", "[16, 16]", "--data.batch_size", "2", "--model.encoder", "test_resnet"]
SETTINGS += ["--model.detail_channels", "4", "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "true"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` (six sound volumes of three classes) and `run` (two steps of training on them)."""
    home = tmp_path_factory.mktemp("sound")
    data = write_pairs_of_volumes(home / "data", num_classes=3)
    (data / "classes.txt").write_text("ground\nsmall\nlarge\n")
    recipe = SegmentationRecipe(
        run=home / "run",
        data=DataConfig(root=data, patch_size=(16, 16), batch_size=2, augment="none"),
        model=ModelConfig(encoder="test_resnet", detail_channels=4),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    return home


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "data", tmp_path / "data"))


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _said(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().err.split())


def _train(data: Path, *options: str) -> int:
    """Train by a recipe, so that no plan is made, which would read every case first."""
    recipe = data.parent / "recipe.yaml"
    recipe.write_text(f"run: {data.parent / 'run'}\ndata: {{root: {data}}}\n")
    return main(["medical", "train", "--config", str(recipe), *SETTINGS, *options])


def _refuses_to_train(data: Path, reason: str, capsys: pytest.CaptureFixture, *names: str) -> None:
    """`train` ends with status 2, its message names the files and the reason, and no file was written."""
    before = _files(data.parent)
    assert _train(data) == 2
    said = _said(capsys)
    for name in names:
        assert name in said
    assert re.search(reason, said), said
    assert set(_files(data.parent)) - {"recipe.yaml"} == set(before)


@pytest.mark.parametrize("defect", image_defects(), ids=lambda defect: defect.name)
def test_train_names_the_defective_image_and_leaves_no_run(defect: Defect, data: Path, capsys) -> None:
    defect.spoil(data / "images" / "case_003.nii.gz")
    _refuses_to_train(data, defect.reason, capsys, "case_003.nii.gz")


@pytest.fixture(scope="module")
def predicted(sound: Path) -> tuple[str, list[str]]:
    """What `predict` says of a folder of every defective image and two sound ones, and the files it writes."""
    folder, output = sound / "mixed", sound / "predictions"
    folder.mkdir()
    for defect in image_defects():
        file = Path(shutil.copy(sound / "data/images/case_003.nii.gz", folder / f"{defect.name}.nii.gz"))
        defect.spoil(file)
    for picture in picture_defects():
        picture.spoil(folder / picture.name)
    shutil.copy(sound / "data/images/case_000.nii.gz", folder / "sound.nii.gz")
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(folder / "sixteen_bit.png")
    words = ["medical", "predict", "--run", str(sound / "run"), str(folder), "--output", str(output), "--device", "cpu"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(words) == 2
    return " ".join(said.getvalue().split()), _files(output)


@pytest.mark.parametrize("defect", [*image_defects(), *picture_defects()], ids=lambda defect: defect.name)
def test_predict_names_the_defective_image(defect: Defect, predicted: tuple[str, list[str]]) -> None:
    file = defect.name if "." in defect.name else f"{defect.name}.nii.gz"
    messages = [message for message in predicted[0].split("statefield: ") if f"/{file}:" in message]
    assert len(messages) == 1
    assert re.search(defect.reason, messages[0]), messages[0]


def test_predict_writes_the_sound_cases_and_nothing_of_the_others(predicted: tuple[str, list[str]]) -> None:
    assert predicted[1] == ["sixteen_bit.png", "sound.nii.gz"]


@pytest.mark.parametrize("defect", label_defects(), ids=lambda defect: defect.name)
def test_train_names_the_defective_labels_and_leaves_no_run(defect: Defect, data: Path, capsys) -> None:
    defect.spoil(data / "labels" / "case_003.nii.gz")
    _refuses_to_train(data, defect.reason, capsys, "labels/case_003.nii.gz")


@pytest.mark.parametrize("side", ["predictions", "targets"])
@pytest.mark.parametrize("defect", label_defects(), ids=lambda defect: defect.name)
def test_evaluate_names_the_defective_labels_and_writes_no_scores(
    defect: Defect, side: str, data: Path, tmp_path: Path, capsys
) -> None:
    for name in ("predictions", "targets"):
        shutil.copytree(data / "labels", tmp_path / name)
    defect.spoil(tmp_path / side / "case_003.nii.gz")
    files = ["--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")]
    words = ["medical", "evaluate", str(tmp_path / "predictions"), str(tmp_path / "targets"), *files]
    before = _files(tmp_path)
    assert main([*words, "--labels", "ground", "small", "large", "--jobs", "1", "--no-distances"]) == 2
    said = _said(capsys)
    assert f"{side}/case_003.nii.gz" in said
    assert re.search(defect.reason, said), said
    assert _files(tmp_path) == before


@pytest.mark.parametrize("accepted", accepted_labels(), ids=lambda accepted: accepted.name)
def test_evaluate_accepts_odd_but_sound_labels_and_says_what_it_did(
    accepted: Defect, data: Path, tmp_path: Path, caplog
) -> None:
    for name in ("predictions", "targets"):
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / "case.nii.gz", _sound_labels(), np.diag([-0.8, -0.9, 2.5, 1.0]), np.uint8)
    accepted.spoil(tmp_path / "targets" / "case.nii.gz")
    out = tmp_path / "out.json"
    words = ["medical", "evaluate", str(tmp_path / "predictions"), str(tmp_path / "targets"), "--jobs", "1"]
    assert main([*words, "--classes", "2", "--no-distances", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["metrics"]["Dice"]["classes"]["class_1"]["case_mean"] == 1.0
    assert accepted.reason in caplog.text


def _sound_labels() -> np.ndarray:
    labels = np.zeros((20, 24, 8))
    labels[2:6, 2:6, 2:6] = 1
    return labels


def _no_label(root: Path) -> None:
    (root / "labels" / "case_002.nii.gz").unlink()


def _case_as_nii_too(root: Path) -> None:
    image = root / "images" / "case_002.nii.gz"
    write_volume(root / "images" / "case_002.nii", np.ones((2, 2, 2)))
    assert image.exists()


def _folder_named_like_a_file(root: Path) -> None:
    (root / "images" / "case_002.nii.gz").unlink()
    (root / "images" / "case_002.nii.gz").mkdir()


def _broken_link(root: Path) -> None:
    (root / "images" / "case_002.nii.gz").unlink()
    (root / "images" / "case_002.nii.gz").symlink_to(root / "nowhere.nii.gz")


def _no_files(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


def _other_channels(root: Path) -> None:
    write_volume(root / "images" / "case_002.nii.gz", np.ones((20, 24, 8, 2)), np.diag([-0.8, -0.9, 2.5, 1.0]))


def _gap_without_declared_classes(root: Path) -> None:
    (root / "classes.txt").unlink()
    for path in (root / "labels").iterdir():
        labels = np.zeros((20, 24, 8))
        labels[:4], labels[10:12] = 2, 5
        write_volume(path, labels, np.diag([-0.8, -0.9, 2.5, 1.0]), np.uint8)


def _nothing_but_background(root: Path) -> None:
    (root / "classes.txt").unlink()
    for path in (root / "labels").iterdir():
        write_volume(path, np.zeros((20, 24, 8)), np.diag([-0.8, -0.9, 2.5, 1.0]), np.uint8)


FOLDERS = [
    (_no_label, "have no mask of the same name, such as case_002", "labels"),
    (_case_as_nii_too, "name the same case; keep one", "case_002.nii"),
    (_folder_named_like_a_file, "no such file", "images/case_002.nii.gz"),
    (_broken_link, "no such file", "images/case_002.nii.gz"),
    (_no_files, "no image found|masks have no image", "data"),
    (_other_channels, "2 channels found; the dataset has 1", "case_002.nii.gz"),
    (_gap_without_declared_classes, r"the values \[0, 2, 5\] .* leave gaps; .* declare the classes", "classes.txt"),
    (_nothing_but_background, "hold nothing but 0", "classes.txt"),
]


@pytest.mark.parametrize(("spoil", "reason", "name"), FOLDERS, ids=[row[0].__name__.strip("_") for row in FOLDERS])
def test_train_refuses_folders_that_cannot_be_meant(spoil, reason: str, name: str, data: Path, capsys) -> None:
    spoil(data)
    _refuses_to_train(data, reason, capsys, name)


def _description(root: Path, change) -> Path:
    content = json.loads((root / "dataset.json").read_text())
    change(content)
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def _climb(content: dict) -> None:
    content["training"][0]["image"] = "../../etc/passwd"


def _absolute(content: dict) -> None:
    content["training"][0]["label"] = "/etc/passwd"


def _listed_twice(content: dict) -> None:
    content["training"].append(content["training"][0])


def _gap(content: dict) -> None:
    content["labels"] = {"0": "background", "2": "small", "5": "large"}


def _number_for_a_file(content: dict) -> None:
    content["training"][0]["image"] = 7


MALICIOUS = [
    (_climb, "'../../etc/passwd' points out of the dataset's folder"),
    (_absolute, "'/etc/passwd' points out of the dataset's folder"),
    (_listed_twice, "'fake_000' is listed twice"),
    (_gap, r"numbers \[0, 2, 5\]; 0 to 2 without gaps are needed. Renumber"),
    (_number_for_a_file, "7 found where the name of a file"),
]


@pytest.mark.parametrize(("change", "reason"), MALICIOUS, ids=[row[0].__name__.strip("_") for row in MALICIOUS])
def test_train_refuses_a_description_that_cannot_be_meant(change, reason: str, tmp_path: Path, capsys) -> None:
    root = _description(write_msd(tmp_path / "data", num_cases=6), change)
    _refuses_to_train(root, reason, capsys, "dataset.json")


def test_a_link_out_of_the_dataset_that_a_description_names_is_refused(tmp_path: Path, capsys) -> None:
    root = write_msd(tmp_path / "data", num_cases=6)
    outside = write_volume(tmp_path / "secret.nii.gz", np.ones((20, 24, 8)))
    (root / "imagesTr" / "fake_000.nii.gz").unlink()
    (root / "imagesTr" / "fake_000.nii.gz").symlink_to(outside)
    _refuses_to_train(root, "points out of the dataset's folder", capsys, "fake_000.nii.gz")


def test_train_refuses_a_case_of_nnunet_without_labels_or_channel(tmp_path: Path, capsys) -> None:
    root = write_nnunet(tmp_path / "data")
    (root / "labelsTr" / "fake_002.nii.gz").unlink()
    _refuses_to_train(root, "1 of 8 cases have no file in labelsTr/, such as fake_002", capsys, "imagesTr")
    root = write_nnunet(tmp_path / "second" / "data")
    (root / "imagesTr" / "fake_002_0001.nii.gz").unlink()
    _refuses_to_train(root, r"the case 'fake_002' has the channels \[0\]; 2 are declared", capsys, "imagesTr")


class _Payload:
    """What a hostile pickle holds: unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_given_as_weights_is_refused_and_never_run(data: Path, tmp_path: Path, capsys) -> None:
    import pickle

    import torch

    mark = tmp_path / "executed"
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(pickle.dumps(_Payload(mark)))
    before = _files(tmp_path)
    run = ["medical", "train", "--data.root", str(data), "--run", str(tmp_path / "run"), *SETTINGS]
    assert main([*run, "--model.weights", str(weights)]) == 2
    assert "weights.safetensors" in _said(capsys)
    torch.save(_Payload(mark), weights)
    assert main([*run, "--model.weights", str(weights)]) == 2
    assert "weights.safetensors" in _said(capsys)
    assert not mark.exists()
    assert _files(tmp_path) == before


def test_a_pickle_in_place_of_a_run_s_weights_is_refused_by_predict(sound: Path, tmp_path: Path, capsys) -> None:
    import torch

    run = Path(shutil.copytree(sound / "run", tmp_path / "run"))
    mark = tmp_path / "executed"
    torch.save(_Payload(mark), run / "weights.safetensors")
    words = ["medical", "predict", "--run", str(run), str(sound / "data/images"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "weights.safetensors" in _said(capsys)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_may_not_be_read_is_named(data: Path, monkeypatch, capsys) -> None:
    def refused(path: Path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    _refused = main(["medical", "evaluate", str(data / "labels"), str(data / "labels")])
    assert _refused == 2
    assert re.search(r"data/labels: permission denied", _said(capsys))


def test_predict_refuses_folders_without_images_and_inputs_named_twice(sound: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty" / "folder.nii.gz").mkdir(parents=True)
    words = ["medical", "predict", "--run", str(sound / "run"), "--output", str(tmp_path / "out")]
    assert main([*words, str(tmp_path / "empty")]) == 2
    assert re.search(r"empty: no image in this folder", _said(capsys))
    write_volume(tmp_path / "twice" / "a.nii.gz", np.ones((8, 8, 4)))
    write_volume(tmp_path / "other" / "a.nii.gz", np.ones((8, 8, 4)))
    assert main([*words, str(tmp_path / "twice"), str(tmp_path / "other")]) == 2
    assert re.search(r"both cases are named 'a'", _said(capsys))
    assert not (tmp_path / "out").exists()


def test_train_says_what_is_odd_and_goes_on(data: Path, caplog) -> None:
    """Mixed spacings, a constant image, a case of background alone and labels in floats: stated, and no error."""
    sizes = np.diag([-0.8, -0.9, 5.0, 1.0])
    for index in range(5):
        name = f"case_00{index}.nii.gz"
        write_volume(data / "images" / name, np.full((20, 24, 8), 7), sizes)
        labels = np.zeros((20, 24, 8)) if index < 3 else _sound_labels()
        write_volume(data / "labels" / name, labels, sizes, np.float32)
    assert _train(data, "--metrics.lesions", "[small]") == 0
    said = " ".join(caplog.text.split())
    assert re.search(r"every value of channel 0 is 7: it shows nothing", said)
    assert re.search(r"labels are stored as float32", said)
    assert re.search(r"\d of 5 cases show nothing but background: case_00", said)
    assert re.search(r"slices 2\.5 to 5 mm.*Set data\.spacing, say to their medians \[5, 0\.9, 0\.8\]", said)
    scored = json.loads((data.parent / "run" / "metrics.json").read_text())["model"]["test"]
    assert set(scored["lesions"]) == {"small"}
    assert "lesion_F1_any" in scored["metrics"]


def test_lesions_of_a_class_that_is_not_there_are_refused_before_training(data: Path, capsys) -> None:
    assert _train(data, "--metrics.lesions", "[liver]") == 2
    assert "lesions names 'liver'; classes among small, large are needed" in _said(capsys)
    assert not (data.parent / "run").exists()


PICTURE_MASKS = [
    (lambda p: p.rename(p.with_suffix(".jpg")), "JPEG masks found"),
    (lambda p: Image.fromarray(np.full((16, 16), 127, np.uint8)).save(p), r"values \[.*127\].*classes\.txt"),
    (lambda p: Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(p), "colours"),
    (write_bomb_png, "too many pixels"),
    (lambda p: Image.fromarray(np.ones((5, 5), np.uint8)).save(p), "5 x 5: they must have the same size"),
    (lambda p: p.write_bytes(p.read_bytes()[:60]), "damaged or cut off"),
]


@pytest.mark.parametrize(
    ("spoil", "reason"), PICTURE_MASKS, ids=["jpeg", "grey", "colour", "bomb", "other_size", "truncated"]
)
def test_train_refuses_masks_of_pictures_that_hold_no_labels(spoil, reason: str, tmp_path: Path, capsys) -> None:
    root = write_pairs(tmp_path / "data", num_cases=8)
    spoil(root / "masks" / "case_001.png")
    _refuses_to_train(root, reason, capsys, "masks" if reason.startswith(("JPEG", "values")) else "masks/case_001")


def test_palette_masks_sixteen_bit_images_and_opaque_alpha_are_trained_on(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "data", num_cases=8, size=(32, 32))
    for path in (root / "masks").iterdir():
        mask = Image.fromarray(np.asarray(Image.open(path)), "P")
        mask.putpalette([0, 0, 0, 200, 30, 30])
        mask.save(path)
    for index, path in enumerate(sorted((root / "images").iterdir())):
        grey = np.asarray(Image.open(path))
        if index % 2:
            Image.fromarray(grey.astype(np.uint16) * 200).save(path)
        else:
            Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), "LA").save(path)
    assert _train(root) == 0
