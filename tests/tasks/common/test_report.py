"""The report holds its numbers and pictures, is one file, and trusts no text."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from statefield.errors import ShapeError
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.common.report import (
    CaseView,
    ComparisonRow,
    MetricRow,
    Table,
    format_value,
    representative,
    write_report,
)

PANELS = ("image", "truth", "prediction", "errors")
CLASSES = ("other", "grey matter", "white matter")
HISTORY = [
    {"epoch": 0, "train/loss": 1.0, "val/loss": 1.1, "val/Dice/grey matter": 0.5, "lr": 1e-3},
    {"epoch": 1, "train/loss": 0.5, "val/loss": None, "val/Dice/grey matter": float("nan"), "lr": 5e-4},
]


class Page(HTMLParser):
    """Visible text, tags and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def pictures(self) -> list[Image.Image]:
        sources = [
            attrs.get("src") or attrs.get("srcset") or "" for tag, attrs in self.tags if tag in ("img", "source")
        ]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        pictures = [Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) for source in sources]
        for picture in pictures:
            picture.load()
        return pictures


def square(name: str, wrong: int, score: float) -> CaseView:
    """A 20 x 24 picture whose true square [5:15, 5:15] is predicted `wrong` columns too far to the right."""
    target = np.zeros((20, 24), dtype=np.int64)
    target[5:15, 5:15] = 1
    image = np.random.default_rng(0).normal(size=(1, 20, 24)).astype(np.float32)
    return CaseView(name, image, target, np.roll(target, wrong, axis=1), {"mean Dice": score, "HD95_mm": 2.0 * wrong})


def volume() -> CaseView:
    """Six slices; 2 has most foreground, 4 is the worst predicted; the nose (front, row 7) is bright."""
    target = np.zeros((6, 8, 10), dtype=np.int64)
    target[1:5, 3:6, 3:7] = 1
    target[2, 2:6, 2:8] = 2
    prediction = target.copy()
    prediction[4] = 0
    prediction[4, 3, 3] = 1
    prediction[3, 3, 3] = 0
    image = np.zeros((1, 6, 8, 10), dtype=np.float32)
    image[:, :, 7, 4] = 1
    return CaseView("brain", image, target, prediction, {"mean Dice": 0.9}, spacing=(3.0, 2.0, 1.0))


def report_of(tmp_path: Path, **changes: object) -> Page:
    arguments: dict = {
        "title": "A report",
        "summary": {"mean Dice": 0.95341, "parameters": 3_512_345, "seed": 0},
        "cases": [square("a", 0, 1.0), square("b", 1, 0.9), square("c", 5, 0.5), square("d", 2, 0.8)],
        "history": HISTORY,
        "classes": CLASSES,
        **changes,
    }
    path = write_report(tmp_path / "run", **arguments)
    assert path == tmp_path / "run" / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_numbers_of_summary_metrics_and_comparison_are_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("encoder: spatial_mamba_nano\n")
    page = report_of(
        tmp_path,
        metrics=[
            MetricRow("Dice", "pooled over all voxels", {"grey matter": 0.9417, "white matter": 0.9654}, 0.95355),
            MetricRow("HD95_mm", "mean over cases", {"grey matter": 1.4142, "white matter": float("nan")}, unit="mm"),
        ],
        comparison=[
            ComparisonRow("Spatial-Mamba U-Net", "model", {"mean Dice": 0.95341, "parameters": 3_512_345}),
            ComparisonRow("two thresholds", "baseline", {"mean Dice": 0.9449, "parameters": 2}),
        ],
        notes=["One template brain only."],
    )
    for expected in (
        *("A report", "0.953", "3 512 345", "One template brain only.", "encoder: spatial_mamba_nano"),
        *("Dice", "pooled over all voxels", "0.942", "0.965", "0.954", "HD95_mm", "mean over cases", "1.414"),
        *("Spatial-Mamba U-Net model", "two thresholds baseline", "0.945"),
        *("statefield medical train --config", describe_environment()["torch"], describe_environment()["processor"]),
    ):
        assert expected in page.text, expected
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "strong"] == ["best"]  # counts are no scores


def test_further_tables_show_their_rows_under_their_title(tmp_path: Path) -> None:
    table = Table("Folds", "Dice on held-out cases.", [{"fold": "0", "Dice": 0.81234}, {"fold": "all", "Dice": None}])
    page = report_of(tmp_path, tables=[table])
    assert "Folds Dice on held-out cases. fold Dice 0 0.812 all -" in page.text


def test_best_median_and_worst_case_are_drawn_and_saved(tmp_path: Path) -> None:
    page = report_of(tmp_path)
    assert [word for word in page.words if word in ("Best case", "Median case", "Worst case")] == [
        *("Best case", "Median case", "Worst case")
    ]
    alts = " ".join(attrs.get("alt") or "" for tag, attrs in page.tags if tag == "img")
    assert "best case: case a" in alts
    assert "median case: case d" in alts
    assert "worst case: case c" in alts
    assert len(page.pictures()) == 3 * 4 + 2  # four panels each, and the curves in two inks
    figures = tmp_path / "run" / "figures"
    assert {path.name for path in figures.iterdir()} == {
        *(f"{rank}_case_{panel}.png" for rank in ("best", "median", "worst") for panel in PANELS),
        *("curves.png", "curves_dark.png", "overview.png"),
    }
    with Image.open(figures / "best_case_errors.png") as errors, Image.open(figures / "worst_case_errors.png") as worst:
        assert not has_colour(errors, (0xD5, 0x5E, 0x00))
        assert has_colour(worst, (0xD5, 0x5E, 0x00))  # false foreground to the right
        assert has_colour(worst, (0xF0, 0xE4, 0x42))  # missed foreground to the left


def has_colour(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture.convert("RGB")) == colour).all(-1).any())


def test_a_single_volume_shows_its_best_median_and_worst_slice_with_the_front_up(tmp_path: Path) -> None:
    page = report_of(tmp_path, cases=[volume()])
    assert "axial slice 4 of 6" in page.text  # Dice 2/(12+1) in the only class: the worst
    with Image.open(tmp_path / "run" / "figures" / "worst_slice_image.png") as picture:
        pixels = np.asarray(picture)
    assert pixels[: len(pixels) // 8].max() == 255  # row 7 of 8, the front, is drawn at the top
    assert pixels[len(pixels) // 4 :].max() == 0
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(8 * 2.0 / (10 * 1.0), rel=0.01)  # 2 mm rows, 1 mm columns


def test_volumes_of_several_cases_show_the_slice_with_most_foreground(tmp_path: Path) -> None:
    page = report_of(tmp_path, cases=[volume(), replace(volume(), case="two", scores={"mean Dice": 0.4})])
    assert page.text.count("axial slice 2 of 6") == 2


def test_unlabelled_pixels_choose_no_slice_and_are_no_errors(tmp_path: Path) -> None:
    target = np.full((3, 8, 8), 255, np.uint8)  # -1 in one byte: no label
    prediction = np.ones((3, 8, 8), np.uint8)
    target[1, :4] = 1
    target[2, :2], prediction[2, 0] = 1, 0  # slice 2: 8 of 16 labelled pixels are found, 2 * 8 / (8 + 16)
    view = CaseView("scribbles", np.zeros((1, 3, 8, 8)), target, prediction, {"Dice": 0.5})
    write_report(tmp_path, title="t", summary={"Dice": 0.5}, cases=[view], history=[], classes=CLASSES)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "axial slice 1 of 3" in text
    assert "axial slice 2 of 3" in text
    assert "axial slice 0 of 3" not in text
    assert "1.000" in text
    assert "0.667" in text


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = report_of(tmp_path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    for _, attrs in page.tags:
        for name in ("src", "srcset", "href", "action"):
            assert (attrs.get(name) or "data:").startswith("data:")
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "url(" not in text
    assert "@import" not in text


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(evil)
    page = report_of(
        tmp_path,
        title=evil,
        summary={evil: evil},
        cases=[square(evil, 0, 1.0), square("b", 1, 0.5)],
        classes=("other", evil),
        notes=[evil],
        reproduce=[evil],
        metrics=[MetricRow(evil, evil, {evil: 1.0})],
        comparison=[ComparisonRow(evil, "model", {evil: evil})],
    )
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(evil) >= 10


def test_a_run_without_training_or_cases_still_has_a_report(tmp_path: Path) -> None:
    page = report_of(tmp_path, cases=[], history=[])
    assert page.pictures() == []
    assert "0.953" in page.text
    assert "What it looks like" not in page.text


def test_unranked_cases_are_not_drawn_but_are_listed(tmp_path: Path) -> None:
    page = report_of(tmp_path, cases=[square("first", 0, float("nan")), square("second", 1, 0.5)], history=[])
    assert len(page.pictures()) == 4
    assert "All 2 cases" in page.text
    assert "first - 0.000" in page.text


def test_a_prediction_of_another_shape_is_refused_with_the_case_name() -> None:
    with pytest.raises(ShapeError, match="case 'a'"):
        CaseView("a", np.zeros((1, 4, 4)), np.zeros((4, 4), int), np.zeros((4, 5), int), {})


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], {}),
        ([float("nan")], {}),
        ([0.5], {"best": 0}),
        ([0.5, 0.7], {"best": 1, "worst": 0}),
        ([0.1, 0.9, 0.5, 0.4, float("nan"), 0.8], {"best": 1, "median": 2, "worst": 0}),
    ],
)
def test_representative_cases(scores: list[float], expected: dict[str, int]) -> None:
    assert representative(scores) == expected


def test_values_keep_three_digits_and_say_when_there_is_none() -> None:
    assert [format_value(value) for value in (1, 1.0, 12.34, 1234.5, None, float("nan"), "x")] == [
        *("1", "1.000", "12.3", "1 234", "-", "-", "x")
    ]
