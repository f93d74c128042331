"""What goldens say of a net's inner modules: their outputs by the names that the official code has for them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Watch:
    """What modules give, by the names that goldens call them."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def on(self, module: nn.Module, name: str, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        module.register_forward_hook(lambda _m, _i, output: self.seen.__setitem__(name, change(output)))

    def longest_first(self) -> dict[str, Tensor]:
        """`layers.1.blocks.0` before `layers.1`: a golden's description is matched by how it begins."""
        return dict(sorted(self.seen.items(), key=lambda item: -len(item[0])))
