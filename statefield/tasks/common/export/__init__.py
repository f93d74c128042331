"""Files that run without statefield: ONNX for ONNX Runtime and others, .pt2 for torch alone.

    from statefield.tasks.common.export import backbone_subject, export

    export(backbone_subject("spatial_mamba_tiny"), Path("spatial_mamba_tiny.onnx"))

Each field makes its `Subject` from a run folder, in its own `export.py`.
"""

from statefield.tasks.common.export.agreement import TOLERANCE, Agreement
from statefield.tasks.common.export.backbone import backbone_subject
from statefield.tasks.common.export.job import Exported, export
from statefield.tasks.common.export.subject import Subject

__all__ = ["TOLERANCE", "Agreement", "Exported", "Subject", "backbone_subject", "export"]
