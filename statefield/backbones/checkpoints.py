"""Weights from files into models: safely opened, strictly matched, counted.

A file is one of ours (safetensors) or of the authors' (a PyTorch file, opened with the weights-only unpickler). Its
entries go through the `checkpoint_filter_fn` of the model's family, then every name and shape must fit. What a model
was built without, because it only gives feature maps, is set aside and counted; nothing else is passed over.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.backbones._register import BACKBONES
from statefield.errors import CheckpointError

_logger = logging.getLogger(__name__)

FilterFn = Callable[[dict[str, Any], nn.Module], dict[str, Any]]

_ENDS = ("norm", "fusion", "head", "feature_norms")  # the parts that forms of one backbone differ in


@dataclass(frozen=True)
class LoadReport:
    """What happened to every entry of a checkpoint and of the model.

    Attributes:
        source: the file, or what the entries came from. container: which dict in the file held them ("" for none).
        loaded: names that were copied into the model.
        set_aside: entries for parts that this form of the model was built without (a features-only model's head).
        ignored: entries that belong to no backbone, the reason -> their names: a detector's other parts, say.
        fresh: the model's entries that kept their own initial values because the caller asked for that.
        adapted: input convolutions changed to another number of channels, as "name: 3 -> 1 channels".
        missing: the model's entries that the file lacks. unexpected: the file's entries that the model lacks.
        mismatched: entries whose shapes differ, as "name: (file) in the file, (model) in the model".
    """

    source: str
    container: str = ""
    loaded: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether file and model agree entry by entry."""
        return not (self.missing or self.unexpected or self.mismatched)

    def lines(self) -> list[str]:
        """The report for people: one line a group, counts first, the first few names after them."""
        groups = [
            ("loaded", self.loaded, False),
            ("adapted", self.adapted, True),
            ("set aside (the model was built without these parts)", self.set_aside, True),
            *((f"ignored ({reason})", names, True) for reason, names in self.ignored.items()),
            ("kept fresh, as asked", self.fresh, True),
            ("missing in the file", self.missing, True),
            ("unexpected in the file", self.unexpected, True),
            ("of another shape", self.mismatched, True),
        ]
        always = {"loaded", "missing in the file", "unexpected in the file", "of another shape"}
        return [
            f"{len(names):5d} {what}" + (f": {_few(names)}" if named and names else "")
            for what, names, named in groups
            if names or what in always
        ]


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], *, fresh: tuple[str, ...] = (), container: str | None = None
) -> LoadReport:
    """Load a checkpoint file into a backbone, strictly.

    Args:
        model: a backbone, or the features-only form of one (also the `encoder.model` of an smp decoder).
        path: .safetensors, or a PyTorch file (.pth, .pt, .ckpt, .bin) of the authors' or of ours.
        fresh: names, or beginnings of names up to a dot, that keep the model's own initial values whatever the file
            holds: `("head",)` for a new classifier, `("feature_norms",)` for a dense backbone from a classifier.
        container: which dict of the file to read; by default the first there is of
            those as trained, then of averages ("model", "state_dict", "model_ema", "state_dict_ema", "ema_state_dict").

    Returns:
        The counted report; also logged.

    Raises:
        CheckpointError: the file is damaged or unsafe, or does not fit; the model keeps the weights it had.
    """
    found = read_checkpoint(path, container)
    report = load_entries(model, found.entries, source=str(path), fresh=fresh)
    report = replace(report, container=found.container, ignored={**found.ignored, **report.ignored})
    _logger.info("%s\n%s", path, "\n".join(report.lines()))
    return report


def load_entries(
    model: nn.Module,
    entries: Mapping[str, Tensor],
    *,
    source: str,
    fresh: tuple[str, ...] = (),
    filter_fn: FilterFn | None = None,
) -> LoadReport:
    """`load_checkpoint` for entries that are in memory already, under the authors' names or ours.

    `filter_fn` renames them; by default the one of the family that the model belongs to.
    """
    target = backbone_of(model)
    filter_fn = filter_fn or family_filter(target)
    entries, ignored = _without_repeats(entries, filter_fn, target, source)
    renamed = filter_fn(dict(entries), target)
    if len(renamed) != len(entries):
        raise CheckpointError(
            f"{source} holds {len(entries)} entries that become {len(renamed)} under our names: some are there twice, "
            f"under an old and a new name. Keep one of them: weights that would not be used are refused."
        )
    incoming, adapted = _with_adapted_input(target, renamed)
    report, accepted = _compare(target, incoming, source, fresh)
    report = replace(report, adapted=adapted, ignored=ignored)
    if not report.fits:
        raise CheckpointError(_misfit(report, target, incoming, entries))
    target.load_state_dict(accepted, strict=not report.fresh)  # _compare has matched every name that is not fresh
    return report


def _without_repeats(
    entries: Mapping[str, Tensor], filter_fn: FilterFn, target: nn.Module, source: str
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The entries without those that the filter's module declares to be there for nothing, and these by their reason.

    `REPEATED_ENTRIES`, a pattern: second names that the authors' code has for a tensor. They have to hold the same
    values. `UNUSED_ENTRIES`, a pattern: parameters that the authors' code has and never reads.
    """
    home = sys.modules[filter_fn.__module__]
    repeated, unused = (getattr(home, name, None) for name in ("REPEATED_ENTRIES", "UNUSED_ENTRIES"))
    if repeated is None and unused is None:
        return dict(entries), {}
    again = tuple(key for key in entries if repeated is not None and repeated.search(key))
    idle = tuple(key for key in entries if unused is not None and unused.search(key))
    kept = {key: value for key, value in entries.items() if key not in {*again, *idle}}
    ours = filter_fn(dict(kept), target)
    for key in again:
        if key in idle:
            continue
        (name,) = filter_fn({key: entries[key]}, target)
        if name not in ours or not torch.equal(ours[name], entries[key]):
            raise CheckpointError(
                f"{source} holds {key}, a second name of {name}, which is "
                f"{'not there under its first name' if name not in ours else 'there with other values'}: the file was "
                "not written by the authors' code as it is, or was damaged since. Fetch it again."
            )
    reasons = {"a second name of another entry": again, "read by nothing in the authors' code": idle}
    return kept, {reason: names for reason, names in reasons.items() if names}


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone itself, taken out of timm's features-only wrapper where there is one."""
    return model.model if isinstance(model, FeatureGetterNet) else model


def family_filter(model: nn.Module) -> FilterFn:
    """The `checkpoint_filter_fn` of the module that defines the model's class; the identity where it has none."""
    home = sys.modules[type(model).__module__]
    return getattr(home, "checkpoint_filter_fn", lambda entries, _: entries)


def _compare(
    target: nn.Module, incoming: Mapping[str, Tensor], source: str, fresh: tuple[str, ...]
) -> tuple[LoadReport, dict[str, Tensor]]:
    own = target.state_dict()
    pruned = tuple(getattr(target, "pruned_parts", ()))
    accepted: dict[str, Tensor] = {}
    set_aside: list[str] = []
    unexpected: list[str] = []
    mismatched: list[str] = []
    for name, value in incoming.items():
        if _is_within(name, fresh):
            continue
        if name not in own:
            (set_aside if _is_within(name, pruned) else unexpected).append(name)
        elif own[name].shape != value.shape:
            mismatched.append(f"{name}: {tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model")
        else:
            accepted[name] = value
    report = LoadReport(
        source=source,
        loaded=tuple(accepted),
        set_aside=tuple(set_aside),
        fresh=tuple(name for name in own if _is_within(name, fresh)),
        missing=tuple(name for name in own if name not in incoming and not _is_within(name, fresh)),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
    )
    return report, accepted


def _is_within(name: str, parts: tuple[str, ...]) -> bool:
    """Whether `name` is one of `parts` or lies below one, as `head.fc.bias` lies below `head`."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _with_adapted_input(target: nn.Module, incoming: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit the first convolution to the model's image channels, as timm does: summed for one, cycled for more."""
    name = f"{pretrained_cfg_of(target).get('first_conv')}.weight"
    if name not in incoming:
        return incoming, ()
    theirs, ours = incoming[name], target.get_parameter(name)
    fits_but_channels = theirs.ndim == ours.ndim == 4 and theirs[:, :1].shape == ours[:, :1].shape
    if not fits_but_channels or theirs.shape[1] == ours.shape[1] or theirs.shape[1] != 3:
        return incoming, ()
    weight = adapt_input_conv(ours.shape[1], theirs)
    return incoming | {name: weight}, (f"{name}: {theirs.shape[1]} -> {ours.shape[1]} channels",)


def _misfit(
    report: LoadReport, target: nn.Module, incoming: Mapping[str, Tensor], entries: Mapping[str, Tensor]
) -> str:
    """The one paragraph for a file that does not fit: what it holds, what is needed, what to do."""
    name = pretrained_cfg_of(target).get("architecture") or type(target).__name__
    groups = (
        ("missing", report.missing),
        ("unexpected", report.unexpected),
        ("of another shape", report.mismatched),
    )
    counts = ", ".join(f"{len(names)} {what} ({_few(names)})" for what, names in groups if names)
    return (
        f"{report.source} does not fit {name}: {len(report.loaded)} of the model's {len(target.state_dict())} entries "
        f"agree, {counts}. The file holds {_size(incoming)}, the model {_size(target.state_dict())}. "
        f"{_remedy(report, target, incoming, entries)}"
    )


def _remedy(
    report: LoadReport, target: nn.Module, incoming: Mapping[str, Tensor], entries: Mapping[str, Tensor]
) -> str:
    """What to do, judged by which parts of the model disagree."""
    mismatched = tuple(entry.split(":")[0] for entry in report.mismatched)
    if not all(_is_within(name, _ENDS) for name in (*report.missing, *report.unexpected, *mismatched)):
        fitting = fitting_models(entries) if pretrained_cfg_of(target) else []  # a bare module is no model by name
        if fitting:
            return f"It fits {' and '.join(fitting)}: build that model instead."
        return "No backbone here fits it: check that depths and widths are those of a published model."
    if mismatched:
        classes = next(incoming[name].shape[0] for name in mismatched)
        return f"Its head has {classes} classes: build the model with num_classes={classes}, or pass fresh=('head',)."
    if any(_is_within(name, ("feature_norms",)) for name in report.unexpected):
        return "It has a norm for every map: build the model with features_only=True and feature_norms=True."
    if any(_is_within(name, ("feature_norms",)) for name in report.missing):
        return "It has no norms for the maps: build the model without feature_norms, or pass fresh=('feature_norms',)."
    if report.missing:
        parts = tuple(sorted({name.split(".")[0] for name in report.missing}))
        if any(_is_within(name, parts) for name in incoming):
            return f"Only a part of {' and '.join(parts)} is there: fetch the file again."
        return f"It has no classifier: build the model with features_only=True, or pass fresh={parts}."
    return "It has a head, the model none: build the model with the file's num_classes, or with features_only=True."


def fitting_models(entries: Mapping[str, Tensor]) -> list[str]:
    """Names of the registered backbones that agree with a file's entries, names and shapes, but for their ends."""
    kinds: dict[tuple[str, bool], list[str]] = {}  # models of a module, and its pyramids, differ in their sizes alone
    for name in BACKBONES:
        kinds.setdefault((timm.models.model_entrypoint(name).__module__, name.endswith("_pyramid")), []).append(name)
    found = []
    for names in kinds.values():
        if _is_akin(entries, outline_of(names[0])):
            found += [name for name in names if _fits(entries, outline_of(name))]
    return found


def _fits(entries: Mapping[str, Tensor], candidate: nn.Module) -> bool:
    theirs = family_filter(candidate)(dict(entries), candidate)
    first = f"{pretrained_cfg_of(candidate)['first_conv']}.weight"  # takes any number of image channels
    return _body(theirs, first) == _body(candidate.state_dict(), first)


def _is_akin(entries: Mapping[str, Tensor], one: nn.Module) -> bool:
    """Whether most names of a file are, but for numbers in them, names of `one`: outlines of all sizes take long."""
    theirs, ours = (
        {re.sub(r"\d+", "#", name) for name in names}
        for names in (family_filter(one)(dict(entries), one), one.state_dict())
    )
    return 2 * len(theirs & ours) >= len(theirs)


@cache
def outline_of(name: str) -> nn.Module:
    """A registered backbone without memory for its weights (meta device): its names and shapes."""
    with torch.device("meta"):
        return timm.create_model(name)


def _body(entries: Mapping[str, Tensor], first: str) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in entries.items() if name != first and not _is_within(name, _ENDS)}


def pretrained_cfg_of(model: nn.Module) -> dict[str, Any]:
    """timm's description of a model, empty where it was built without timm."""
    cfg = getattr(model, "pretrained_cfg", None)
    return cfg if isinstance(cfg, dict) else {}


def _size(entries: Mapping[str, Tensor]) -> str:
    parameters = sum(value.numel() for value in entries.values())
    return f"{len(entries)} entries with {parameters / 1e6:.1f} M values"


def _few(names: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
