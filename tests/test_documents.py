"""What the documents show works: code runs, commands exist with their options, links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.models._registry as timm_registry
import torch
from document_blocks import DOCUMENTS, ROOT, python_blocks, run_page
from fakes.mot import write_ground_truth
from fakes.rasters import change_pair
from safetensors.torch import save_file

from statefield.backbones import BACKBONES, create_model
from statefield.cli.main import VERBS, main, overview
from statefield.datasets import ADAPTERS
from statefield.kernels.routes import ROUTES

# ---- Python ----------------------------------------------------------------------------------------------------------


def _of_backbones(folder: Path) -> dict[str, Any]:
    """An image, a volume, and a model with a file of its weights."""
    model = create_model("spatial_mamba_tiny")
    save_file(model.state_dict(), folder / "spatial_mamba_tiny.safetensors")
    return {"image": torch.zeros(1, 3, 64, 64), "ct": torch.zeros(1, 1, 32, 32, 32), "model": model}


def _of_events(folder: Path) -> dict[str, Any]:
    """A recording of three events in EVT 2.0."""
    words = [8 << 28 | 1] + [on << 28 | 5 << 22 | 10 * on << 11 | 7 for on in (1, 0, 1)]
    (folder / "recording.raw").write_bytes(b"% evt 2.0\n% geometry 64x48\n% end\n" + np.array(words, "<u4").tobytes())
    return {}


def _of_metrics(folder: Path) -> dict[str, Any]:
    """Two predicted cases."""
    target = np.zeros((4, 8, 8), np.int64)
    target[1:3, 2:6, 2:6] = 1
    spacing_mm = (2.5, 0.8, 0.8)
    return {"cases": [("a", target, target, spacing_mm), ("b", np.roll(target, 1, axis=2), target, spacing_mm)]}


def _of_rasters(folder: Path) -> dict[str, Any]:
    """Two dates of a place."""
    change_pair(folder, 96, 128)
    return {}


def _of_tracks(folder: Path) -> dict[str, Any]:
    """A sequence with its tracker's result, which misses the last of three frames."""
    rows = [f"{frame},1,{10 * frame},20,30,60,1,1,1\n" for frame in (1, 2, 3)]
    write_ground_truth(folder / "MOT17" / "train", "MOT17-02-FRCNN", "".join(rows), 3)
    results = folder / "results" / "sort"
    results.mkdir(parents=True)
    (results / "MOT17-02-FRCNN.txt").write_text("".join(row.replace(",1,1,1\n", ",1,-1,-1,-1\n") for row in rows[:2]))
    return {}


SURROUNDINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "docs/backbones.md": _of_backbones,
    "docs/events.md": _of_events,
    "docs/metrics.md": _of_metrics,
    "docs/remote_sensing.md": _of_rasters,
    "docs/tracking.md": _of_tracks,
}
PAGES = [path for path in DOCUMENTS if python_blocks(path)]


@pytest.fixture
def registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is forgotten after it."""
    for registry in (ROUTES, BACKBONES, ADAPTERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for name, table in list(vars(timm_registry).items()):
        if name.startswith("_") and isinstance(table, defaultdict):
            copied = defaultdict(table.default_factory, {key: copy(entry) for key, entry in table.items()})
            monkeypatch.setattr(timm_registry, name, copied)
        elif name.startswith("_") and type(table) in (dict, set):
            monkeypatch.setattr(timm_registry, name, copy(table))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_of_the_documents_runs(path: Path, folder: Path, registries_as_before: None) -> None:
    surroundings = SURROUNDINGS.get(path.relative_to(ROOT).as_posix(), lambda folder: {})(folder)
    names = run_page(path, folder, surroundings)
    if path.name == "tracking.md":
        assert names["evaluation"].trackers[0].combined("pedestrian")["CLEAR"]["MOTA"] == pytest.approx(2 / 3)


def test_the_made_up_crowd_is_tracked_learned_from_and_scored(folder: Path) -> None:
    run_page(ROOT / "docs" / "tracking_motion.md", folder, {})
    recipe = ROOT / "recipes" / "tracking" / "mtp_crowd.yaml"
    assert main(["mot", "train", "--config", str(recipe), "--trainer.fast_dev_run", "true"]) == 0
    assert (folder / "runs/mtp_crowd/weights.safetensors").is_file()
    for tracker in ("sort", "bytetrack"):
        assert main(["mot", "track", "crowd/test", "--output", f"results/{tracker}", "--tracker", tracker]) == 0
    assert main(["mot", "evaluate", "--gt", "crowd/test", "--results", "results", "--output", "scores"]) == 0
    scores = json.loads(Path("scores/scores.json").read_text())["trackers"]
    hota = {name: np.mean(found["pedestrian"]["combined"]["HOTA"]["HOTA"]) for name, found in scores.items()}
    assert 0.5 < hota["sort"] < hota["bytetrack"] < 0.9  # who alone uses the weak detections of people half hidden


def test_python_that_is_not_run_says_why() -> None:
    reasons = [block.not_run for path in DOCUMENTS for block in python_blocks(path) if block.not_run]
    assert all(len(reason.split()) > 2 for reason in reasons)
    fences = sum(path.read_text(encoding="utf-8").count("```python") for path in DOCUMENTS)
    assert fences == sum(len(python_blocks(path)) for path in DOCUMENTS), "a block is not closed"


def test_the_backbone_of_the_page_on_extending_passes_what_conformance_asks(
    folder: Path, registries_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_page(ROOT / "docs" / "extending.md", folder, {})
    path = ROOT / "tests" / "conformance" / "test_backbone_conformance.py"
    spec = importlib.util.spec_from_file_location("conformance", path)
    assert spec is not None and spec.loader is not None
    conformance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conformance)
    name, family = "outward_mamba_tiny", "OutwardMamba"
    conformance.TWINS[family] = (name, {"dims": 8, "depths": (1, 1, 1, 1)})
    conformance.test_every_family_has_a_twin()
    conformance.test_builds_on_the_meta_device_with_no_arguments_and_tells_its_pyramid(name)
    conformance.test_the_cfg_names_the_first_convolution_and_the_classifier(name)
    conformance.test_every_parameter_belongs_to_a_layer_group_and_unknown_arguments_are_refused(name)
    conformance.test_asking_for_weights_that_nobody_hosts_says_where_they_are(name)
    conformance.test_features_only_gives_the_same_maps_as_the_whole_model(family)
    conformance.test_chosen_maps_are_those_of_all_maps(family, (0, 2))
    conformance.test_output_stride_is_honoured_and_reported_or_refused(family, 16, [4, 8, 16, 16])
    conformance.test_an_impossible_output_stride_is_refused(family, 64)
    conformance.test_any_channels_and_any_size(family, 13, (37, 51))
    conformance.test_smp_decoders_run_forward_and_backward(family, "unet")
    conformance.test_gradient_checkpointing_gives_equal_gradients(family)
    conformance.test_evaluation_follows_every_change_of_a_parameter(family)
    conformance.test_bfloat16_autocast_stays_finite_and_near(family)
    conformance.test_a_state_dict_survives_a_round_trip_through_a_fresh_model(family)


# ---- Commands --------------------------------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """The `statefield ...` command lines of a page: in fenced or indented blocks, and alone between backticks."""
    text = re.sub(r"\\\n\s*", " ", text)  # a command on several lines
    fenced = re.findall(r"^```(?:sh|console|text)?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [line for line in prose.splitlines() if line.startswith("    ")]
    found = [
        match[1] for line in lines if (match := re.search(r"(?:^\s*|\$ |srun |--no-python )(statefield .*)", line))
    ]
    found += [span.replace("\n", " ") for span in re.findall(r"`(statefield [^`]+)`", prose)]
    return [line for line in found if "<" not in line and "..." not in line]


COMMANDS = sorted(
    {(command, path.name) for path in DOCUMENTS for command in commands(path.read_text(encoding="utf-8"))}
    | {(line.strip(), "statefield --help") for line in overview().split("examples:\n")[1].splitlines()}
)


@lru_cache
def _help(words: tuple[str, ...]) -> str:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return told.getvalue()


@pytest.mark.parametrize(("command", "where"), COMMANDS, ids=[f"{where}: {command}" for command, where in COMMANDS])
def test_commands_of_the_documents_exist_and_know_their_options(command: str, where: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    options = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    count = next((count for count in (2, 1) if tuple(words[:count]) in VERBS), 0)
    fields = {known[0] for known in VERBS if len(known) == 2}
    if count == 0 and (not words or words[0] in fields or words[0].startswith("--")):
        assert set(options) <= {"--help", "--version", "--debug"} and len(words) <= 2, f"{command} is no command"
        return
    assert count, f"{command} is no command"
    told = _help(tuple(words[:count]))
    for option in set(options) - {"--debug"}:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told), f"{option} is not in its --help"


def test_the_documents_show_commands() -> None:
    assert len(COMMANDS) > 60


# ---- Links and targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_of_the_project(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing


def test_makefile_knows_the_commands_of_the_documents() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    wanted = {name for text in texts for name in re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE)}
    assert {"demo", "test", "check"} <= wanted
    for name in wanted:
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE), f"make {name}"
