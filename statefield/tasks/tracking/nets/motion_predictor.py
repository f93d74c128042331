"""MTP, the motion predictor of MambaTrack (arXiv 2408.09178): the next step of a box from its last steps.

    [dx, dy, dw, dh] of up to q frames -> linear -> bidirectional Mamba blocks -> mean over frames -> MLP -> next step

    block   y = mamba_forwards(x) + mamba_backwards(x);   out = y + norm(mlp(y))

There is no code of the authors. What their paper leaves open is ours, and said where it is: what steps are measured in,
the backward branch's order (ours returns to time's), what stands before a young track's first step, and how large
steps are kept from exploding (they are compressed).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._mixers import OrientedMixer
from statefield.errors import ConfigError, ShapeError

__all__ = ["MotionPredictor"]


class _Convolutions(nn.Module):
    """The control's mixer, about as large as two Mambas; a step sees four to either side: [B, L, D] -> [B, L, D]."""

    def __init__(self, dim: int, expand: float) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.across = nn.Conv1d(dim, inner, kernel_size=9, padding=4)
        self.back = nn.Conv1d(inner, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(functional.silu(self.across(x.transpose(1, 2)))).transpose(1, 2)


class _Block(nn.Module):
    """Two Mambas, one from either end (or the control's convolutions), and an MLP: [B, L, D] -> [B, L, D]."""

    def __init__(
        self, dim: int, d_state: int, expand: float, mlp_ratio: float, convolution: bool, residual: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        mixer = partial(OrientedMixer, dim, d_state=d_state, expand=expand)
        self.forwards = _Convolutions(dim, expand) if convolution else mixer(routes={"scan": "raster"})
        self.backwards = None if convolution else mixer(routes={"scan": "raster~"})
        hidden = int(mlp_ratio * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.forwards(x)
        if self.backwards is not None:
            y = y + self.backwards(x)
        if self.residual:
            y = y + x
        return y + self.norm(self.mlp(y))


class MotionPredictor(nn.Module):
    """Steps of boxes, oldest first [B, q, 4], and how many of them are real [B] -> the next step [B, 4].

    Args:
        history: q, steps that are read at most. dim: D. num_layers: blocks. d_state: N. expand: inner channels over D.
        mlp_ratio: hidden units of a block's MLP over D.
        from_last_step: the layers give what the next step has beyond the last one, nothing at first, so that training
            begins with constant velocity; without it, as in the paper, they give the step itself.
        residual: add a block's input to what its Mambas make of it. The paper's equations do not, and then little of
            the steps comes through three blocks: Mambas begin with outputs far smaller than their inputs.
        convolution: convolutions over the steps in place of the Mambas, of about as many weights: the control.

    A step is (dx, dy, dw, dh) of a box's centre and sides in the unit of `statefield.tasks.tracking.motion`, which
    measures and undoes it. A track with fewer steps has zeros in front, which the mean over frames leaves out.

    Source: section 3.2 of the paper; q 10, D 512 and 3 blocks there.
    """

    def __init__(
        self,
        history: int = 10,
        *,
        dim: int = 512,
        num_layers: int = 3,
        d_state: int = 16,
        expand: float = 2.0,
        mlp_ratio: float = 4.0,
        from_last_step: bool = False,
        convolution: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if history < 1 or num_layers < 1:
            raise ConfigError(f"history {history} and num_layers {num_layers}: 1 or more are needed of each.")
        self.history = history
        # What a step of 1 is to the layers: the standard deviation of the training's steps, kept with the weights.
        self.spread = nn.Buffer(torch.ones(4))
        self.embed = nn.Linear(4, dim)
        self.blocks = nn.ModuleList(
            _Block(dim, d_state, expand, mlp_ratio, convolution, residual) for _ in range(num_layers)
        )
        last = nn.Linear(dim, 4)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last)
        self.from_last_step = from_last_step
        if from_last_step:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        if steps.ndim != 3 or tuple(steps.shape[1:]) != (self.history, 4) or lengths.shape != steps.shape[:1]:
            raise ShapeError(
                f"steps of shape {list(steps.shape)} with lengths of shape {list(lengths.shape)}: "
                f"[B, {self.history}, 4] and [B] are needed."
            )
        places = torch.arange(self.history, device=steps.device)
        real = (places >= self.history - lengths.clamp(min=1)[:, None]).to(steps.dtype)[..., None]
        # The blocks have no norm before their scans, and a scan with its gate is of third degree in its input: three of
        # them made 1e13 of a step of a hundred deviations, and training diverged. Small steps pass as they are.
        x = self.embed(torch.asinh(steps / self.spread))
        for block in self.blocks:
            x = block(x)
        found = self.head((x * real).sum(1) / real.sum(1)) * self.spread
        return steps[:, -1] + found if self.from_last_step else found

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive the recurrences."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D"))}
