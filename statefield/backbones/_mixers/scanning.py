"""`Scanning`: what every mixer with a recurrence is; `without_scan`: the same net with its recurrences taken out."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from torch import nn

from statefield.errors import ConfigError

Net = TypeVar("Net", bound=nn.Module)


class Scanning(nn.Module):
    """A mixer whose tokens exchange by a recurrence (or the operator that stands for one).

    A subclass names in `scan_parameters` the parameters and sub-modules that the recurrence alone reads, and in its
    forward takes the recurrence's value input as its result where `scans` is False. Projections of the value and of
    the gate, norms and convolutions stay.
    """

    scans: bool = True
    scan_parameters: ClassVar[tuple[str, ...]] = ()

    def remove_scan(self) -> None:
        """Replace the recurrence by the identity, and drop what only it needed. There is no way back."""
        for name in self.scan_parameters:
            delattr(self, name)
        self.scans = False


def without_scan(net: Net) -> Net:
    """`net` itself, changed: every scan replaced by the identity, and what only the scans read removed.

    It is the control that tells what the scans are worth: all else is as before, parameters by name and value included.
    Where a mixer adds the scans of K routes, K identities are added. What else looks far is no scan and stays:
    attention, squeeze-and-excitation, norms over the whole image. Take it before weights are loaded or trained.

    Raises:
        ConfigError: nothing in `net` scans.

    >>> from statefield.backbones._mixers import BidirectionalMixer
    >>> sorted(name for name, _ in without_scan(BidirectionalMixer(8)).named_parameters() if "forwards" in name)
    ['forwards.conv1d.bias', 'forwards.conv1d.weight']
    """
    mixers = [module for module in net.modules() if isinstance(module, Scanning)]
    if not mixers:
        raise ConfigError(
            f"{type(net).__name__} has no scan that could be left out: ask for a control without scan of a model "
            "that scans, or set without_scan to false."
        )
    for mixer in mixers:
        if mixer.scans:
            mixer.remove_scan()
    return net


def first_outputs(linear: nn.Linear, count: int) -> nn.Linear:
    """A linear layer with the first `count` outputs of another."""
    kept = nn.Linear(
        linear.in_features, count, bias=linear.bias is not None, device=linear.weight.device, dtype=linear.weight.dtype
    )
    for name, parameter in linear.named_parameters():
        getattr(kept, name).data.copy_(parameter.data[:count])
    return kept
