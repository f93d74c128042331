"""The lowest versions that `make test-lowest` installs: one for each package that a user may get."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_SCRIPT = _ROOT / "scripts/lowest_versions.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("lowest_versions", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_requirement_of_a_user_is_pinned_to_its_lower_bound():
    printed = subprocess.run([sys.executable, _SCRIPT], capture_output=True, text=True, check=True).stdout.split()
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    users = [name for name in extras if name not in ("dev", "docs", "release")]
    assert len(printed) == len(project["dependencies"]) + sum(len(extras[name]) for name in users)
    assert "torch==2.10" in printed and "gradio==6.31" in printed
    assert len({line.split("==")[0] for line in printed}) == len(printed)


def test_the_bounds_are_not_above_what_is_installed(script):
    from packaging.version import Version

    for line in subprocess.run([sys.executable, _SCRIPT], capture_output=True, text=True, check=True).stdout.split():
        name, bound = line.split("==")
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed
        assert Version(installed) >= Version(bound), name


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("torch>=2.10", "torch==2.10"),
        ("jsonargparse[signatures]>=4.49", "jsonargparse==4.49"),
        ("triton>=3.6; platform_system == 'Linux'", "triton==3.6"),
        ("albumentations>=2.0.8,<2.1", "albumentations==2.0.8"),
    ],
)
def test_extras_markers_and_upper_bounds_are_left_out(script, text, pin):
    assert script.lowest([text]) == [pin]


def test_a_requirement_without_a_lower_bound_is_named(script):
    with pytest.raises(ValueError, match="no lower bound in numpy, pillow<13"):
        script.lowest(["torch>=2.10", "numpy", "pillow<13"])
