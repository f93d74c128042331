"""`statefield doctor`: what is installed, which kernels run, and whether they compute what their references compute."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from statefield.kernels.self_check import CheckRow

_PACKAGES = (
    "statefield",
    "torch",
    "torchvision",
    "triton",
    "timm",
    "segmentation-models-pytorch",
    "monai",
    "albumentations",
    "lightning",
    "nibabel",
    "rasterio",
    "numpy",
)


def doctor(argv: list[str]) -> int:
    """Print the report; the exit status is 0, or 1 when a kernel does not compute what its reference computes."""
    parser = ArgumentParser(
        prog="statefield doctor",
        description="Show what is installed and which kernels run here; check each kernel against its reference.\n\n"
        "examples:\n  statefield doctor\n  statefield doctor --brief\n  STATEFIELD_KERNELS=reference statefield doctor",
        formatter_class=_Lines,
    )
    parser.add_argument("--brief", action="store_true", help="a few lines: what runs, what is slower, what is wrong")
    brief = parser.parse_args(argv).brief
    console = Console()
    with _quiet_library():
        from statefield.kernels.self_check import reject, self_check  # here: it imports torch

        checks = self_check()
        reject(checks)  # as the first use of each would
        if not brief:
            _print_versions(console)
            _print_machine(console)
            _print_implementations(console)
        wrong = _print_checks(console, checks, brief)
        if brief:
            _print_summary(console)
    for warning in _warnings():
        console.print(f"[bold yellow]warning[/] {warning}", highlight=False)
    return 1 if wrong else 0


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without the library's own warnings: what they would say stands in the tables."""
    library = logging.getLogger("statefield")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)


class _Lines(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples."""


def _print_versions(console: Console) -> None:
    table = Table("package", "version", title="Installed", title_justify="left")
    table.add_row("python", sys.version.split()[0])
    for package in _PACKAGES:
        table.add_row(package, _version(package) or "[red]not installed[/]")
    console.print(table)


def _print_machine(console: Console) -> None:
    import torch

    from statefield.kernels import native
    from statefield.tasks.common.environment import processor_name

    table = Table(title="This machine", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("processor", processor_name())
    table.add_row("CPU threads", f"torch uses {torch.get_num_threads()} of {os.cpu_count()} logical cores")
    table.add_row("torch's instruction set", torch.backends.cpu.get_cpu_capability())
    reason = native.unavailable()
    if reason:
        table.add_row("native library", f"[yellow]absent:[/] {reason}")
    else:
        table.add_row("native library", str(native.library_path()))
        table.add_row("instruction set", f"{native.isa()} (this CPU runs {', '.join(native.supported_isas())})")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            table.add_row(f"GPU {index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
    else:
        table.add_row("GPU", "none that torch can use")
    forced = os.environ.get("STATEFIELD_KERNELS")
    table.add_row("STATEFIELD_KERNELS", forced or "not set: the fastest available one runs")
    console.print(table)


def _print_implementations(console: Console) -> None:
    from statefield.kernels import implementations

    table = Table("operator", "device", "implementation", "", title="Kernels", title_justify="left")
    for row in implementations():
        state = "[bold green]runs[/]" if row.chosen else "available" if row.available else f"[dim]{row.reason}[/]"
        table.add_row(row.op, row.device, row.implementation, state)
    console.print(table)


def _print_checks(console: Console, rows: Sequence[CheckRow], brief: bool) -> bool:
    """Print the self-check (only what is wrong, when brief). True when something is wrong."""
    if not brief:
        table = Table("operator", "device", "implementation", "largest error", "", title_justify="left")
        table.title = "Self-check: values and gradients in float32 against the reference in float64"
        for row in rows:
            verdict = f"[bold red]{row.problem}[/]" if row.problem else "[green]equal[/]"
            table.add_row(row.op, row.device, row.implementation, f"{row.error:.1e}", verdict)
        console.print(table)
    wrong = [row for row in rows if row.problem]
    for row in wrong:
        console.print(f"[bold red]wrong[/] {row.implementation} {row.op} on {row.device}: {row.problem}")
    return bool(wrong)


def _print_summary(console: Console) -> None:
    import torch

    from statefield.kernels import native

    reason = native.unavailable()
    if reason:
        console.print(
            f"statefield {_version('statefield')} is installed without its native kernels: {reason}. On the CPU, scans "
            "and state fusions run as plain PyTorch instead: the same results, but a scan takes 10 to 30 times as long "
            "and training on the CPU several times as long. On a GPU nothing changes.",
            highlight=False,
        )
    else:
        console.print(
            f"statefield {_version('statefield')}: native CPU kernels for {native.isa()}, "
            f"{torch.get_num_threads()} threads.",
            highlight=False,
        )
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none that torch can use"
    console.print(f"torch {torch.__version__}; GPU: {gpu}. `statefield doctor` tells more.", highlight=False)


def _warnings() -> list[str]:
    found = []
    if _version("albumentationsx"):
        found.append(
            "albumentationsx is installed. It is licensed under the AGPL and installs over the package albumentations, "
            "which statefield uses under the MIT licence. To return to that: pip uninstall -y albumentationsx "
            "albumentations && pip install 'albumentations>=2.0.8,<2.1'"
        )
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
