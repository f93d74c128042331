"""What a number was made with: versions, commit and machine, as plain text for reports and result files."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("statefield", "torch", "triton", "timm", "segmentation-models-pytorch", "monai", "lightning", "numpy")


def describe_environment(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Name -> text: python, installed `packages`, commit (only in a git checkout), system, processor, threads, GPU."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    commit = source_commit()
    if commit is not None:
        found["commit"] = commit
    found["system"] = f"{platform.system()} {platform.release()} ({platform.machine()})"
    found["processor"] = processor_name()
    found["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} logical cores"
    if torch.cuda.is_available():
        found["GPU"] = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return found


@functools.cache
def source_commit() -> str | None:
    """The commit of the checkout that statefield runs from, "+changes" appended when files differ from it.

    None for an installed package: a repository that merely contains the environment says nothing about the code.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit[:12]}{'+changes' if changes else ''}"


def processor_name() -> str:
    """The processor as its maker calls it, where the system tells."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        name = _run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"])
        if name:
            return name
    return platform.processor() or platform.machine()


def _git(root: Path, *words: str) -> str | None:
    return _run(["git", "-C", str(root), *words])


def _run(command: list[str]) -> str | None:
    """The command's output, or None where the program is missing or fails: the fact is then simply not known."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
