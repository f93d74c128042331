"""Settings that follow from the data: rules from a fingerprint and a budget to a recipe, each setting with its reason.

plan = plan_recipe(fingerprint, machine_budget())
write_text(Path("recipe.yaml"), plan.text())        # `read_recipe` of it gives plan.recipe

The rules are nnU-Net's where it has one (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, and the code of its
second version); docs/medical.md tells each, and where ours differ and why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from statefield.errors import ConfigError
from statefield.tasks.common.resampling import resampled_shape
from statefield.tasks.medical.budget import Budget
from statefield.tasks.medical.decisions import Decision, flow, plain, recipe_of, recipe_text
from statefield.tasks.medical.fingerprint import Fingerprint
from statefield.tasks.medical.patch import PLANNED_NETS, PatchPlan, plan_patch
from statefield.tasks.medical.recipe import SegmentationRecipe
from statefield.tasks.medical.topology import LARGEST_FEATURES, SMALLEST_EDGE, Topology

COARSE = 3.0  # an axis is coarse when its spacing is more than so many times the next one's; nnU-Net's number
FEWEST_SLICES = 8  # of a volume for a net of volumes: two halvings down to nothing less than two slices
FEW_THICK_SLICES = 16
SMALLEST_FOR_ENCODER = 64  # pixels: an encoder halves its image five times
_DIMS_OF_NET: dict[str, tuple[Literal[2, 3], str]] = {
    "vm_unet": (2, "the net vm_unet takes slices only"),
    "mhs_vm": (2, "the net mhs_vm takes slices only"),
    "segmamba": (3, "the net segmamba takes volumes only"),
}
_CT_NAME = re.compile(r"(?<![a-z])(cb|ld|ce|nc)?ct(?![a-z])")
_NAMELESS = re.compile(r"^(image|img|data|volume|channel|grey|gray|modality)?[_ ]?\d*$")


@dataclass(frozen=True)
class Plan:
    """A recipe, what was decided in it, and what its reader should know besides."""

    recipe: SegmentationRecipe
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    title: str

    def text(self) -> str:
        """The recipe as YAML: the decided settings alone, each under its reason."""
        return recipe_text(self.decisions, self.title, self.notes)


def plan_recipe(
    fingerprint: Fingerprint,
    budget: Budget,
    *,
    given: Mapping[str, Any] | None = None,
    control: bool = False,
) -> Plan:
    """The recipe that follows from a dataset.

    Args:
        given: settings that are decided already, by dotted names ("data.patch_size"); others follow from them.
        control: whether to train a net without a state-space layer for comparison.

    Raises:
        ConfigError: a budget in which not even the smallest patch can be trained, or given settings that cannot work.
        UnknownName: a given net that there is not.
    """
    return _Planner(fingerprint, budget, dict(given or {}), control).plan()


class _Planner:
    """The rules, in the order in which they depend on each other."""

    def __init__(self, fingerprint: Fingerprint, budget: Budget, given: dict[str, Any], control: bool) -> None:
        self.fingerprint, self.budget, self.given, self.control = fingerprint, budget, given, control
        self.decisions: list[Decision] = []
        self.notes: list[str] = []
        self.num_cases = len(fingerprint.cases)
        self.many = f"{self.num_cases} training case{'s' if self.num_cases > 1 else ''}"

    def plan(self) -> Plan:
        found = self.fingerprint
        self._dataset()
        spacing = self._target_spacing()
        sizes = np.array([resampled_shape(case.shape, case.spacing, spacing) for case in found.cases])
        median = tuple(round(float(size)) for size in np.median(sizes, axis=0))
        dims = self._dimensions(median, spacing)
        spacing = self._resampling(spacing, dims)
        self._normalisation()
        self._net_and_patch(median, spacing, dims, int(sizes.prod(axis=1).sum()))
        self._patches(dims)
        self._training()
        self._storage(sizes)
        self._remarks(spacing)
        for name, value in self.given.items():
            if all(decision.name != name for decision in self.decisions):
                self.decisions.append(Decision(name, value, "given", given=True))
        title = f"Planned from {self.many} of {found.root or found.layout} for {self.budget.device.upper()}s"
        decisions = tuple(self.decisions)
        return Plan(recipe_of(recipe_text(decisions, title, ())), decisions, tuple(self.notes), title)

    def decide(self, name: str, value: Any, reason: str) -> Any:
        """The value of a setting: the one given if there is one. In its plain form, as YAML has it."""
        value = plain(value)
        if name in self.given:
            chosen = plain(self.given[name])
            if not reason.startswith("given"):  # what was decided without it
                same = chosen == value
                reason = "given; as planned" if same else f"given; the plan would be {flow(value)}: {reason}"
            self.decisions.append(Decision(name, chosen, reason, given=True))
            return chosen
        self.decisions.append(Decision(name, value, reason))
        return value

    def state(self, name: str, value: Any, reason: str) -> None:
        """Something that settings follow from."""
        self.decisions.append(Decision(name, value, reason, is_setting=False))

    def _dataset(self) -> None:
        found, budget = self.fingerprint, self.budget
        name = found.root.resolve().name if found.root is not None else found.layout
        self.decide("run", f"runs/{name}", "named after the dataset")
        if found.root is not None:
            self.decide("data.root", str(found.root), "the dataset that was read")
        self.decide("data.layout", found.layout, "recognised by its files")
        self.decide("data.num_classes", len(found.info.classes), f"{', '.join(found.info.classes)}")
        self.state("budget", f"{budget.device}, {budget.memory_gb:g} GB", budget.reason)

    def _target_spacing(self) -> tuple[float, ...] | None:
        """nnU-Net's: the median along each axis, and along a coarse one with few voxels the 10th percentile."""
        found = self.fingerprint
        if not found.spacing_known:
            return None
        spacings, shapes = found.spacings, np.median(found.shapes, axis=0)
        target = np.median(spacings, axis=0)
        coarse = int(np.argmax(target))
        others = [axis for axis in range(len(target)) if axis != coarse]
        if target[coarse] > COARSE * target[others].max() and shapes[coarse] * COARSE < shapes[others].min():
            target[coarse] = max(np.percentile(spacings[:, coarse], 10), target[others].max())
        return tuple(_short(mm) for mm in target)

    def _resampling(self, target: tuple[float, ...] | None, dims: int) -> tuple[float, ...] | None:
        found = self.fingerprint
        if target is None:
            unknown = sum(not case.spacing_known for case in found.cases)
            self.decide(
                "data.spacing",
                None,
                _no_spacing(unknown, self.num_cases),
            )
            return None
        if len(target) == 2:  # data.spacing speaks of volumes
            return target
        median = np.median(found.spacings, axis=0)
        if np.ptp(found.spacings, axis=0).max() < 1e-3:
            reason = f"all of {self.many} have it, so nothing is resampled; images of another spacing will be"
        else:
            reason = f"the median of {self.many}"
            coarse = int(np.argmax(median))
            others = float(np.delete(median, coarse).max())
            if target[coarse] < median[coarse] * (1 - 1e-6):
                axis = ("slices", "rows", "columns")[coarse]
                reason += (
                    f"; {axis} are {median[coarse] / others:.2g} x coarser than the other axes, so that their "
                    f"spacing is the 10th percentile and not {median[coarse]:.3g}, to lose less of the finer cases"
                )
        if dims == 2:
            reason += "; a net of slices leaves the distance between slices as stored"
        chosen = self.decide("data.spacing", (None, *target[1:]) if dims == 2 else target, reason)
        if chosen is None:
            return None
        return tuple(mm if mm is not None else before for mm, before in zip(chosen, median, strict=True))

    def _dimensions(self, size: tuple[int, ...], spacing: tuple[float, ...] | None) -> Literal[2, 3]:
        """Whether a net of slices or of volumes."""
        dims, reason = self._dimensions_and_reason(size, spacing)
        self.state("dimensions", dims, reason)
        return dims

    def _dimensions_and_reason(
        self, size: tuple[int, ...], spacing: tuple[float, ...] | None
    ) -> tuple[Literal[2, 3], str]:
        given = self.given
        sides = given.get("data.patch_size")
        if sides is not None and len(sides) != len(size) == 2:
            raise ConfigError(
                f"data.patch_size is {_by(sides)}, but {self.fingerprint.root} holds pictures: give 2 sides."
            )
        if len(size) == 2:
            return 2, "the images are pictures"
        if "data.patch_size" in given:
            if given["data.patch_size"] is None:
                return 2, "whole slices were asked for"
            return (3 if len(given["data.patch_size"]) == 3 else 2), "the patch size that was given has so many sides"
        if given.get("model.net") in _DIMS_OF_NET:
            return _DIMS_OF_NET[given["model.net"]]
        if given.get("model.encoder") is not None and given.get("model.net") is None:
            return 2, f"the encoder that was given, {given['model.encoder']}, takes slices only"
        slices = size[0]
        if slices < FEWEST_SLICES:
            return (
                2,
                f"the median volume has {slices} slices, fewer than the {FEWEST_SLICES} that a net of volumes needs",
            )
        if spacing is not None:
            ratio = spacing[0] / max(spacing[1:])
            if ratio > COARSE and slices < FEW_THICK_SLICES:
                return 2, (
                    f"the median volume has only {slices} slices, and they lie {ratio:.2g} x as far apart as pixels: "
                    "neighbours hardly resemble each other"
                )
            return 3, f"volumes of {slices} slices that lie {ratio:.2g} x as far apart as pixels"
        if slices < FEW_THICK_SLICES and slices * COARSE < min(size[1:]):
            return 2, (
                f"the median volume has only {slices} slices of {size[1]} x {size[2]} pixels: they will be thick, "
                "though no spacing is known"
            )
        return 3, f"volumes of {slices} slices; voxels are taken for cubes, as no spacing is known"

    def _normalisation(self) -> None:
        name = "data.normalisation.method"
        found, channels = self.fingerprint, self.fingerprint.info.channels
        ct = [self._why_ct(index) for index in range(len(channels))]
        if all(ct) and len(channels) == 1:
            foreground = found.intensities(0)
            numbers = {
                "low": foreground.percentile_00_5,
                "high": foreground.percentile_99_5,
                "mean": foreground.mean,
                "std": foreground.std,
            }
            if foreground.std > 0 and numbers["low"] < numbers["high"]:
                chosen = self.decide(
                    name,
                    "ct",
                    f"{ct[0]}: the same tissue has the same number in every case, so that all are scaled alike",
                )
                reasons = {
                    "low": "the 0.5th percentile of the foreground's intensities, below which values are clipped",
                    "high": "their 99.5th percentile, above which values are clipped",
                    "mean": "their mean",
                    "std": "their standard deviation",
                }
                for part, value in numbers.items() if chosen == "ct" else ():
                    self.decide(f"data.normalisation.{part}", _short(value), reasons[part])
                return
        share = float(np.median([case.box_share for case in found.cases]))
        if share < 0.75:
            self.decide(
                name,
                "zscore_nonzero",
                f"what is not exactly 0 fills only {share:.0%} of the median image (below 75%): the empty ground stays "
                "0 and out of mean and deviation",
            )
            return
        reason = "intensities have no common unit" if not any(ct) else "only some of the channels are CT"
        self.decide(name, "zscore", f"{reason}: each channel of each case gets mean 0 and deviation 1")

    def _why_ct(self, channel: int) -> str:
        """Why a channel is CT, in a clause; "" when it is not."""
        found, name = self.fingerprint, self.fingerprint.info.channels[channel]
        if _CT_NAME.search(name.lower()):
            return f"the channel is named {name!r}"
        if found.info.spatial_dims != 3 or not _NAMELESS.match(name.lower()):
            return ""
        low = np.array([case.low[channel] for case in found.cases])
        high = np.array([case.high[channel] for case in found.cases])
        like = (low >= -4096) & (low <= -500) & (high >= 200)
        if like.mean() < 0.9:
            return ""
        return (
            f"the channel's name does not say, but intensities from {np.median(low):.0f} to {np.median(high):.0f} look "
            "like Hounsfield units (air below -500, bone above 200)"
        )

    def _net_and_patch(
        self, median: tuple[int, ...], spacing: tuple[float, ...] | None, dims: Literal[2, 3], num_voxels: int
    ) -> None:
        on_gpu = self.budget.device == "gpu"
        net, encoder = self._net(median[-dims:], dims, on_gpu)
        lengths = tuple((spacing or (1.0,) * len(median))[-dims:])
        info = self.fingerprint.info
        context = int(self.given.get("data.slice_context") or 0) if dims == 2 else 0
        decided = plan_patch(
            median[-dims:],
            lengths,
            net=net,
            encoder=encoder,
            decoder=self.given.get("model.decoder") or "unet",
            in_channels=len(info.channels) * (2 * context + 1),
            num_classes=len(info.classes),
            on_gpu=on_gpu,
            memory_gb=self.budget.memory_gb,
            num_voxels=num_voxels,
            patch_size=self.given.get("data.patch_size"),
            batch_size=self.given.get("data.batch_size"),
        )
        self.decide("data.patch_size", decided.patch_size, self._why_patch(decided, median[-dims:]))
        self.decide("data.batch_size", decided.batch_size, decided.batch_reason)
        if dims == 3:
            self.decide(
                "inference.batch_size",
                decided.batch_size,
                "windows at a time, as many as in training: more would need more memory",
            )
        if decided.topology is not None:
            self._stages(decided, net, dims)
        self._control(net, encoder, decided)
        covered = math.prod(decided.patch_size) / math.prod(median[-dims:])
        if covered < 0.25 and dims == 3:
            self.notes.append(
                f"a patch covers {covered:.1%} of the median volume. Where structures are larger than that, give a "
                "coarser --data.spacing or more --memory; nnU-Net would train a second net at low resolution, which "
                "is not planned here."
            )

    def _net(self, size: tuple[int, ...], dims: Literal[2, 3], on_gpu: bool) -> tuple[str | None, str]:
        """The net, or else the encoder."""
        encoder = "spatial_mamba_tiny" if on_gpu else "spatial_mamba_nano"
        if "model.encoder" in self.given and self.given.get("model.net") is None:
            return None, self.decide("model.encoder", encoder, "the default for slices")
        if dims == 2 and min(size) >= SMALLEST_FOR_ENCODER and self.given.get("model.net") is None:
            why = (
                "one scan fuses the states of neighbours in the plane; tiny (29 M parameters), as a GPU is there"
                if on_gpu
                else "one scan fuses the states of neighbours in the plane; nano (6 M parameters), as a CPU is slow"
            )
            return None, self.decide("model.encoder", encoder, why)
        if dims == 3:
            why = (
                "a U-Net whose strides and kernels can follow the spacing, as those of nnU-Net do, with a state-space "
                "layer that sees the whole patch at its bottom; backbones take slices only"
            )
        else:
            why = (
                f"a side of {min(size)} pixels is below {SMALLEST_FOR_ENCODER}: an encoder that halves five times "
                "would leave next to nothing of it, and this net halves as often as the image allows"
            )
        return self.decide("model.net", "u_mamba", why), encoder

    def _why_patch(self, decided: PatchPlan, median: tuple[int, ...]) -> str:
        covered = min(1.0, math.prod(decided.patch_size) / math.prod(median))
        case = "slice" if len(median) == 2 and self.fingerprint.info.spatial_dims == 3 else "case"
        steps = [str(step) for step in dict.fromkeys(decided.multiple)]
        return (
            f"{decided.patch_reason}; the median {case} has {_by(median)}, of which it covers {covered:.0%}; the net "
            f"divides sides by {' or '.join(steps)}"
        )

    def _stages(self, decided: PatchPlan, net: str | None, dims: int) -> None:
        topology = decided.topology
        assert topology is not None
        if "model.net_args" not in self.given:
            self._stage_settings("model.net_args", topology)
        patch = self.given.get("data.patch_size", decided.patch_size)
        has_outputs = len(topology.strides) > 2 and "model.net_args" not in self.given
        fits = patch is not None and all(n % step == 0 for n, step in zip(patch, decided.multiple, strict=True))
        self.decide(
            "model.deep_supervision",
            has_outputs and fits,
            "the net's coarser outputs are trained too, with weights 1, 1/2, 1/4, ...: its lower stages learn sooner"
            if has_outputs and fits
            else "there are no coarser outputs whose voxels stand for whole voxels of the patch",
        )

    def _stage_settings(self, name: str, topology: Topology) -> None:
        halvings = topology.halvings
        often = _times(halvings[0]) if len(set(halvings)) == 1 else ", ".join(map(_times, halvings))
        why = f"axes are halved {often}, down to no less than {SMALLEST_EDGE} voxels"
        is_thin = any(1 in kernel for kernel in topology.kernel_sizes)
        if is_thin:
            why += "; a coarse axis waits until the others have come within a factor of two of it"
        self.decide(f"{name}.strides", topology.strides, why)
        self.decide(
            f"{name}.kernel_sizes",
            topology.kernel_sizes,
            "3 along every axis, but 1 along a coarse one until then"
            if is_thin
            else "3 along every axis: none is coarse",
        )
        base, most = topology.features[0], LARGEST_FEATURES[len(halvings)]
        why = f"{base} channels at first, twice as many after each halving, at most {most}"
        self.decide(f"{name}.features", topology.features, why + ("" if base >= 32 else "; on a GPU it would be 32"))
        if self.budget.device == "cpu":
            self.decide(f"{name}.depths", topology.depths, "one block a stage; on a GPU upper stages would have two")
            self.decide(f"{name}.decoder_depths", topology.decoder_depths, "likewise")

    def _control(self, net: str | None, encoder: str, decided: PatchPlan) -> None:
        given_net = self.given.get("control.net")
        if given_net is None and (not self.control or any(name.startswith("control.") for name in self.given)):
            return
        if net is None and given_net is None:
            other = "convnext_tiny" if encoder.endswith("tiny") else "convnext_atto"
            self.decide("control.encoder", other, "the same decoder on an encoder of convolutions, for comparison")
            return
        self.decide("control.net", "residual_unet", "the same U-Net without a state-space layer, for comparison")
        is_planned = given_net in (None, *PLANNED_NETS) and "control.net_args" not in self.given
        if decided.topology is not None and is_planned:
            self._stage_settings("control.net_args", decided.topology)

    def _patches(self, dims: int) -> None:
        voxels = self.fingerprint.voxels
        shares = voxels[:, 1:].sum(axis=0) / max(1, voxels.sum())
        shown = shares > 0
        rarest = float(shares[shown].min())
        name = self.fingerprint.info.classes[1 + int(np.argmin(np.where(shown, shares, np.inf)))]
        rare = rarest < 1e-3
        self.decide(
            "data.foreground",
            0.5 if rare else 0.33,
            f"{name!r}, the rarest class, is {rarest:.2%} of all voxels, {'below' if rare else 'not below'} 0.1%: "
            + ("half of the patches are centred on some class" if rare else "a third of the patches, as in nnU-Net"),
        )
        colour = self.fingerprint.info.spatial_dims == 2 and len(self.fingerprint.info.channels) == 3
        self.decide(
            "data.augment",
            "natural" if colour else "medical",
            "colour pictures have no up and down"
            if colour
            else "patients have a left and a right, and intensities drift from scanner to scanner",
        )

    def _training(self) -> None:
        if self.budget.device == "gpu":
            epochs, steps, every = 200, 250, 5
            why = "a fifth of nnU-Net's 1000, so that a run ends within a day; more may give better scores"
        else:
            epochs, steps, every = 40, 50, 4
            why = "2000 steps in all, of a second or two each; more give better scores"
        epochs = self.decide("trainer.max_epochs", epochs, why)
        self.decide(
            "trainer.steps_per_epoch", steps, "an epoch is a number of patches, whatever the size of the dataset"
        )
        divisors = [n for n in range(1, every + 1) if epochs % n == 0]
        self.decide("trainer.val_every_epochs", max(divisors), "validation predicts whole cases, which takes its time")
        self.decide("model.schedule", "poly", "falls slowly to 0, as nnU-Net's")
        gpu = self.budget.device == "gpu"
        self.decide("trainer.accelerator", "gpu" if gpu else "cpu", "patches and net are planned for it")
        self.decide(
            "trainer.precision",
            "bf16-mixed" if gpu else "32-true",
            "half the memory, and the range of float32, so that scans do not overflow as in half precision"
            if gpu
            else "half precision is no faster on most CPUs",
        )
        self.decide(
            "inference.mirror",
            gpu,
            "predictions are averaged over mirrored copies, as nnU-Net's"
            if gpu
            else "mirrored copies cost several times the time; `predict --tta` averages over them",
        )

    def _storage(self, sizes: np.ndarray) -> None:
        found = self.fingerprint
        needed = float(sizes.prod(axis=1).sum()) * (4 * len(found.info.channels) + 2) * 1.2 / 1e9
        free = self.budget.free_gb
        fits = needed < free / 2
        self.decide(
            "data.cache",
            "memory" if fits else "disk",
            f"the cases take about {needed:.2g} GB, {'less' if fits else 'more'} than half of the {free:.2g} GB of "
            "memory that are free",
        )
        cores, gpu = self.budget.cores, self.budget.device == "gpu"
        self.decide(
            "data.workers",
            min(8, max(1, cores - 1)) if gpu else 0,
            f"processes that prepare patches for the GPU, of {cores} cores" if gpu else "the net needs the cores",
        )

    def _remarks(self, spacing: tuple[float, ...] | None) -> None:
        found = self.fingerprint
        for label, name in enumerate(found.info.classes):
            if label and not found.voxels[:, label].any():
                self.notes.append(f"the class {name!r} is in none of {self.many}: the net cannot learn it.")
        if spacing is None and found.info.spatial_dims == 3:
            self.notes.append("without a spacing, distances in the scores are in voxels and not in mm.")
        unlabelled = sum(case.unlabelled for case in found.cases)
        if unlabelled:
            share = unlabelled / (unlabelled + int(found.voxels.sum()))
            self.notes.append(f"{share:.1%} of the voxels carry no label: they count in no loss and in no score.")


def _no_spacing(unknown: int, cases: int) -> str:
    who = "no file states" if unknown == cases else f"{unknown} of {cases} files do not state"
    return f"{who} a spacing, so that nothing can be brought to one"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _short(value: float) -> float:
    return float(f"{float(value):.5g}")
