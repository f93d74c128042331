"""Two processes with half of a batch each have the loss of one with all of it, and gradients that add up to its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest

PROGRAM = textwrap.dedent("""
    import torch
    from torch import distributed
    from statefield.tasks.common import losses, parallel
    from statefield.tasks.common.config import UNLABELLED, LossConfig
    from statefield.tasks.common.losses import DeepSupervisionLoss, SegmentationLoss

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    weights = (1.0, 2.0, 3.0)
    kinds = [
        LossConfig(),
        LossConfig(kind="dice_focal", class_weights=weights),
        LossConfig(boundary_weight=0.5),
        LossConfig(include_background=True, pooled_dice=False, class_weights=weights, label_smoothing=0.1),
    ]

    def compare(loss, logits, target):
        # one process with everything: as if there were no group
        one = [part.clone().requires_grad_() for part in logits]
        group, losses.num_processes, losses.summed = (losses.num_processes, losses.summed), lambda: 1, lambda x: x
        whole = loss(one if len(one) > 1 else one[0], target)
        losses.num_processes, losses.summed = group
        whole.backward()
        half = slice(2 * rank, 2 * rank + 2)
        mine = [part[half].clone().requires_grad_() for part in logits]
        value = loss(mine if len(mine) > 1 else mine[0], target[half])
        value.backward()
        torch.testing.assert_close(value, whole)
        for part, full in zip(mine, one):
            # DDP divides the sum of the processes' gradients by their number
            torch.testing.assert_close(part.grad / 2, full.grad[half], rtol=1e-4, atol=1e-7)

    for config in kinds:
        for unlabelled in ("some", "all of one process", "everything"):
            generator = torch.Generator().manual_seed(0)
            target = torch.randint(0, 3, (4, 8, 8), generator=generator)
            target[0, 3:] = UNLABELLED  # the processes have different numbers of labelled pixels
            if unlabelled == "all of one process":
                if not config.pooled_dice:
                    continue  # a mean over images counts an image without labels
                target[2:] = UNLABELLED
            if unlabelled == "everything":
                target[:] = UNLABELLED
            logits = [torch.randn(4, 3, 8, 8, generator=generator)]
            compare(SegmentationLoss(config, 3), logits, target)
            deep = [*logits, torch.randn(4, 3, 4, 4, generator=generator), torch.randn(4, 3, 2, 2, generator=generator)]
            compare(DeepSupervisionLoss(SegmentationLoss(config, 3)), deep, target)
    print("compared")
""")


@pytest.mark.slow
def test_every_kind_of_loss_and_its_gradient(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py")],
            env=os.environ | settings | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert "compared" in output
