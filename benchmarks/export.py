"""Write benchmarks/results/export.json: every family of backbones, and the jobs' nets, as files beside themselves.

    python benchmarks/export.py && python benchmarks/tables.py
    python benchmarks/export.py --only Vim VSSD        measure these anew, keep the other rows
    python benchmarks/export.py --missing              go on: measure what the file has no row of

The rows are twins of the families, of few channels and one block a stage (those of the conformance tests), with weights
moved off their initial values: what is compared is the operators, and the time of the file beside that of the net. Each
is written as ONNX and as a program of torch (.pt2). A family that cannot be exported has the reason in its row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from statefield.errors import StatefieldError
from statefield.files import write_json
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.common.export import Subject, backbone_subject, export
from statefield.tasks.common.network import SegmentationNet
from statefield.tasks.medical.nets.whole import WholeNet
from statefield.tasks.remote_sensing.export import OfTwoDates
from statefield.tasks.remote_sensing.nets import MambaBCD, MambaBDA, MambaSCD, RSMamba
from statefield.tasks.tracking.export import search_subject, templates_subject
from statefield.tasks.tracking.nets import MambaEVT, MotionPredictor

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "export.json"
SIDE = 64
# Nets of medical images: their arguments, and whether slices or volumes are tried.
MEDICAL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "lightm_unet": {"filters": 8, "depths": (1, 1), "decoder_depths": (1,)},
    "mhs_vm": {"dims": 8, "depths": (1, 1), "decoder_depths": (1, 1), "d_state": 2, "threshold": 0.0},
    "segmamba": {"features": (4, 4, 8, 8), "depths": (1, 1, 1, 1), "hidden": 8},
    "spatial_mamba_unet": {"features": (4, 8), "depths": (1, 1)},
    "u_mamba": {"features": (4, 8), "depths": (1, 1), "decoder_depths": (1,)},
    "vm_unet": {"dims": 8, "depths": (1, 1), "decoder_depths": (1, 1), "d_state": 2},
    "xlstm_unet": {"features": (4, 8), "depths": (1, 1), "decoder_depths": (1,)},
}
SLICE, VOLUME = (SIDE, SIDE), (32, 32, 32)
MEDICAL_NETS = [
    ("lightm_unet", SLICE),
    ("mhs_vm", SLICE),
    ("u_mamba", SLICE),
    ("vm_unet", SLICE),
    ("xlstm_unet", SLICE),
    ("segmamba", VOLUME),
    ("spatial_mamba_unet", VOLUME),
]


def subjects() -> dict[str, Callable[[], Subject]]:
    """Name of a row -> what makes its subject."""
    spec = importlib.util.spec_from_file_location(
        "backbone_conformance", ROOT / "tests" / "conformance" / "test_backbone_conformance.py"
    )
    assert spec is not None and spec.loader is not None
    twins = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = twins
    spec.loader.exec_module(twins)
    every = twins.TWINS | {f"{name}, one size of maps": twin for name, twin in twins.ISOTROPIC_TWINS.items()}

    def of(name: str, arguments: dict[str, Any]) -> Callable[[], Subject]:
        return lambda: backbone_subject(name, size=(SIDE, SIDE), num_classes=10, **arguments)

    rows = {row: of(name, arguments) for row, (name, arguments) in every.items()}
    return rows | {
        "medical: decoder on Spatial-Mamba": _segmentation,
        **{f"medical: {name}, {len(sides)}-D": _medical(name, sides) for name, sides in MEDICAL_NETS},
        "change: binary": lambda: _change(MambaBCD, ("logits",)),
        "change: semantic": lambda: _change(MambaSCD, ("change", "before", "after")),
        "change: damage": lambda: _change(MambaBDA, ("building", "damage")),
        "scenes: RSMamba": _scene,
        "tracking: motion": _motion,
        "tracking: search": lambda: search_subject(_tracker(), "mamba_evt", {}),
        "tracking: templates": lambda: templates_subject(_tracker(), "mamba_evt", {}, count=3),
    }


def _segmentation() -> Subject:
    net = SegmentationNet(
        "spatial_mamba_nano",
        in_channels=1,
        num_classes=3,
        detail_channels=4,
        decoder_args={"decoder_channels": (32, 16, 8, 8, 8)},
        encoder_args={"dims": 8, "depths": (1, 1, 1, 1)},
    )
    return Subject("unet on spatial_mamba_nano", net, {"image": torch.zeros(2, 1, SIDE, SIDE)}, ("logits",))


def _medical(name: str, sides: tuple[int, ...]) -> Callable[[], Subject]:
    dims: Any = len(sides)
    image = torch.zeros(2, 1, *sides)

    def make() -> Subject:
        net = WholeNet(name, in_channels=1, num_classes=3, net_args=MEDICAL_ARGUMENTS[name], spatial_dims=dims)
        return Subject(name, net, {"image": image}, ("logits",))

    return make


def _change(net_cls: Callable[..., nn.Module], outputs: tuple[str, ...]) -> Subject:
    net = OfTwoDates(net_cls(3, encoder_args={"dims": 8, "depths": (1, 1, 1, 1)}, width=8))
    image = torch.zeros(2, 3, SIDE, SIDE)
    return Subject(str(net_cls.__name__), net, {"before": image, "after": image.clone()}, outputs)


def _scene() -> Subject:
    net = RSMamba(3, 5, size=(8, 2), image_size=SIDE)
    return Subject("rsmamba", net, {"image": torch.zeros(2, 3, SIDE, SIDE)}, ("logits",))


def _motion() -> Subject:
    net = MotionPredictor(10, dim=32, num_layers=2, d_state=8)
    inputs = {"steps": torch.zeros(2, 10, 4), "lengths": torch.tensor([10, 1])}
    return Subject("mtp", net, inputs, ("next_step",))


def _tracker() -> MambaEVT:
    return MambaEVT(dim=16, num_layers=2, template_size=32, search_size=SIDE, head_channels=8)


def moved(net: nn.Module) -> nn.Module:
    """The net in evaluation, its weights off their initial values: many begin with outputs of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def measure(row: str, make: Callable[[], Subject]) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    name = "-"
    try:
        subject = make()
        name = subject.name
        moved(subject.net)
        with tempfile.TemporaryDirectory() as folder:
            found = export(subject, Path(folder) / "model.onnx")
            seconds = time.perf_counter() - begin
            program = export(subject, Path(folder) / "model.pt2")
    except StatefieldError as error:
        empty = dict.fromkeys(("operations", "kilobytes", "difference", "statefield_ms", "onnxruntime_ms"))
        empty |= dict.fromkeys(("program_difference", "program_ms"))
        return {"family": row, "model": name, "result": f"refused: {error}", **empty}
    return {
        "family": row,
        "model": name,
        "result": "exported",
        "operations": found.nodes,
        "kilobytes": round(found.num_bytes / 1024),
        "difference": found.agreement.difference,
        "statefield_ms": found.agreement.torch_ms,
        "onnxruntime_ms": found.agreement.runtime_ms,
        "seconds_to_export": round(seconds, 1),
        "program_difference": program.agreement.difference,
        "program_ms": program.agreement.runtime_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Export every family and compare it with its file.")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="measure these rows, keep the others as they are")
    parser.add_argument("--missing", action="store_true", help="measure only what has no row yet")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    makers = subjects()
    known = {}
    if RESULT.exists():
        known = {row["family"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]}
    for row in options.only or [row for row in makers if not (options.missing and row in known)]:
        known[row] = measure(row, makers[row])
        print(json.dumps(known[row]), flush=True)
        rows = [known[each] for each in makers if each in known]
        write_json(RESULT, {"environment": describe_environment(), "side_px": SIDE, "rows": rows})


if __name__ == "__main__":
    main()
