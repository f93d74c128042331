"""What is decided from a dataset, each rule against numbers worked by hand; and the recipe that comes of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from fakes.medical import write_msd

from statefield.datasets import DatasetInfo, open_dataset
from statefield.errors import ConfigError, UnknownName
from statefield.tasks.medical.budget import Budget, machine_budget
from statefield.tasks.medical.fingerprint import CaseFingerprint, Fingerprint, fingerprint_dataset
from statefield.tasks.medical.plan import plan_recipe
from statefield.tasks.medical.recipe import SegmentationRecipe, read_recipe

CPU = Budget("cpu", 0.5, "a test", free_gb=16, cores=2)
GPU = Budget("gpu", 8, "a test", free_gb=64, cores=16)
CLASSES = ("background", "organ")


def _case(
    name: str,
    shape: tuple[int, ...],
    spacing: tuple[float, ...] | None = None,
    *,
    intensities: tuple[float, float] = (0, 255),
    box: float = 1.0,
    share: float = 0.1,
    foreground: np.ndarray | None = None,
    channels: int = 1,
) -> CaseFingerprint:
    voxels = int(np.prod(shape))
    values = np.linspace(40, 60, 101, dtype=np.float32) if foreground is None else foreground.astype(np.float32)
    return CaseFingerprint(
        case=name,
        path=f"{name}.nii.gz",
        shape=shape,
        spacing=spacing or (1.0,) * len(shape),
        spacing_known=spacing is not None,
        box=((0, round(shape[0] * box)), *((0, n) for n in shape[1:])),
        low=(intensities[0],) * channels,
        high=(intensities[1],) * channels,
        voxels=(voxels - round(share * voxels), round(share * voxels)),
        unlabelled=0,
        foreground=np.stack([values] * channels),
    )


def _dataset(cases: list[CaseFingerprint], channels: tuple[str, ...] = ("image",), classes=CLASSES) -> Fingerprint:
    info = DatasetInfo(classes, channels, len(cases[0].shape))
    return Fingerprint(info, "pairs", Path("data/fake"), tuple(cases))


def _volumes(shape, spacing, *, num_cases: int = 10, channels=("image",), **options) -> Fingerprint:
    cases = [_case(f"case_{n:02d}", shape, spacing, channels=len(channels), **options) for n in range(num_cases)]
    return _dataset(cases, channels)


def _reason(plan, name: str) -> str:
    return next(decision.reason for decision in plan.decisions if decision.name == name)


def _value(plan, name: str):
    return next(decision.value for decision in plan.decisions if decision.name == name)


# target spacing


def test_isotropic_volumes_keep_their_spacing():
    plan = plan_recipe(_volumes((128, 128, 128), (1.5, 1.5, 1.5)), GPU)
    assert plan.recipe.data.spacing == (1.5, 1.5, 1.5)
    assert "nothing is resampled" in _reason(plan, "data.spacing")


def test_the_target_spacing_is_the_median_along_each_axis():
    cases = [_case(str(mm), (100, 100, 100), (mm, 1.0, 2 * mm)) for mm in (0.8, 1.0, 1.6)]
    plan = plan_recipe(_dataset(cases), GPU)
    assert plan.recipe.data.spacing == (1.0, 1.0, 2.0)
    assert _reason(plan, "data.spacing") == "the median of 3 training cases"


def test_a_coarse_axis_of_few_voxels_gets_the_tenth_percentile():
    thick = (3.0, 4.0, 5.0, 6.0, 7.0)  # median 5 > 3 x 1, 40 slices x 3 < 256; the 10th percentile of five is 3.4
    cases = [_case(str(mm), (40, 256, 256), (mm, 1.0, 1.0)) for mm in thick]
    plan = plan_recipe(_dataset(cases), GPU)
    assert plan.recipe.data.spacing == (3.4, 1.0, 1.0)
    assert "slices are 5 x coarser" in _reason(plan, "data.spacing") and "10th percentile" in _reason(
        plan, "data.spacing"
    )


def test_a_coarse_axis_of_many_voxels_keeps_its_median():
    cases = [_case(str(mm), (100, 256, 256), (mm, 1.0, 1.0)) for mm in (3.0, 5.0, 7.0)]  # 100 x 3 > 256
    assert plan_recipe(_dataset(cases), GPU).recipe.data.spacing == (5.0, 1.0, 1.0)


def test_the_tenth_percentile_never_becomes_finer_than_the_other_axes():
    cases = [_case(f"{n}", (30, 256, 256), (mm, 1.5, 1.5)) for n, mm in enumerate((0.5, 0.5, 5, 5, 5))]
    assert plan_recipe(_dataset(cases), GPU).recipe.data.spacing == (1.5, 1.5, 1.5)


def test_without_a_spacing_nothing_is_resampled():
    mixed = [_case("a", (64, 64, 64), (1, 1, 1)), _case("b", (64, 64, 64))]
    plan = plan_recipe(_dataset(mixed), GPU)
    assert plan.recipe.data.spacing is None
    assert "1 of 2 files do not state a spacing" in _reason(plan, "data.spacing")
    assert any("in voxels and not in mm" in note for note in plan.notes)


# two or three dimensions


@pytest.mark.parametrize(
    ("shape", "spacing", "dims"),
    [
        ((96, 128, 128), (1, 1, 1), 3),
        ((7, 128, 128), (1, 1, 1), 2),  # fewer than eight slices
        ((10, 256, 216), (10, 1.5, 1.5), 2),  # few, and thick
        ((10, 256, 216), (3, 1.5, 1.5), 3),  # few, but close
        ((20, 320, 320), (3.6, 0.6, 0.6), 3),  # thick, but many
        ((10, 256, 216), None, 2),  # few, and thick in all likelihood
        ((40, 96, 96), None, 3),
    ],
)
def test_volumes_are_cut_into_slices_where_these_are_few_and_far_apart(shape, spacing, dims):
    plan = plan_recipe(_volumes(shape, spacing), CPU)
    assert plan.recipe.data.spatial_dims == dims == len(plan.recipe.data.patch_size)
    assert _value(plan, "dimensions") == dims
    if dims == 2 and spacing is not None:
        assert plan.recipe.data.spacing == (None, *spacing[1:])


# patches, batches and stages


def test_patches_and_stages_of_isotropic_volumes_for_eight_gigabytes():
    plan = plan_recipe(_volumes((256, 256, 256), (1, 1, 1), num_cases=40), GPU)
    data, model = plan.recipe.data, plan.recipe.model
    assert model.net == "u_mamba" and model.deep_supervision
    # a full-size patch of 32 channels keeps 6 x 2 x 32 (stem) + 6 x 2 x 32 (first stage) + 64 + 64 + 6 x 32 + 2 x 2
    # numbers a voxel at the image's own resolution, which is 1092 of some 1500 in all, at 2 x 1.2 bytes: two patches
    # of 128^3 need 15 GB, of 96^3 6.3 GB
    assert data.batch_size == 2
    assert 88 <= min(data.patch_size) <= max(data.patch_size) <= 112
    net = model.net_args
    assert net["features"][:4] == [32, 64, 128, 256] and max(net["features"]) == 320
    assert net["strides"][0] == [1, 1, 1] and all(stride == [2, 2, 2] for stride in net["strides"][1:5])
    assert "depths" not in net
    for side, steps in zip(data.patch_size, zip(*net["strides"], strict=True), strict=True):
        assert side % np.prod(steps) == 0
    assert "of which it covers" in _reason(plan, "data.patch_size")


def test_patches_follow_the_shape_of_the_data():
    plan = plan_recipe(_volumes((32, 320, 256), (3.6, 0.6, 0.6), num_cases=40), GPU)
    slices, rows, columns = plan.recipe.data.patch_size
    assert slices < columns <= rows
    net = plan.recipe.model.net_args
    assert net["strides"][1] == [1, 2, 2] and net["kernel_sizes"][0] == [1, 3, 3]
    assert "a coarse axis waits" in _reason(plan, "model.net_args.strides")


def test_a_patch_is_never_larger_than_the_median_case_rounded_up():
    plan = plan_recipe(_volumes((20, 36, 36), (1, 1, 1)), GPU)
    # 20 10 5; 36 18 9 5: two and three halvings (the third of both others), so multiples of 4 and 8
    assert plan.recipe.data.patch_size == (20, 40, 40)
    assert _reason(plan, "data.patch_size").startswith("the whole of it")


def test_more_memory_gives_larger_patches_and_then_more_of_them():
    found = _volumes((64, 64, 64), (1, 1, 1), num_cases=200)
    small, middle, large = (plan_recipe(found, dataclasses.replace(GPU, memory_gb=gb)).recipe.data for gb in (1, 4, 40))
    assert np.prod(small.patch_size) < np.prod(middle.patch_size) == np.prod(large.patch_size) == 64**3
    assert small.batch_size == 2 < middle.batch_size < large.batch_size


def test_a_batch_has_no_more_than_a_twentieth_of_all_voxels():
    plan = plan_recipe(_volumes((32, 32, 32), (1, 1, 1), num_cases=60), dataclasses.replace(GPU, memory_gb=80))
    assert plan.recipe.data.batch_size == 3  # 60 / 20
    assert "a twentieth" in _reason(plan, "data.batch_size")
    few = plan_recipe(_volumes((32, 32, 32), (1, 1, 1), num_cases=4), GPU)
    assert few.recipe.data.batch_size == 2
    assert "unsteady" in _reason(few, "data.batch_size")


def test_a_cpu_gets_a_smaller_net_smaller_patches_and_fewer_steps():
    found = _volumes((128, 128, 128), (1, 1, 1))
    cpu, gpu = plan_recipe(found, CPU).recipe, plan_recipe(found, GPU).recipe
    assert np.prod(cpu.data.patch_size) < np.prod(gpu.data.patch_size)
    assert cpu.model.net_args["features"][0] == 16 and gpu.model.net_args["features"][0] == 32
    assert set(cpu.model.net_args["depths"]) == {1}
    assert cpu.trainer.max_epochs * cpu.trainer.steps_per_epoch == 2000
    assert (cpu.trainer.accelerator, gpu.trainer.accelerator) == ("cpu", "gpu")
    assert (cpu.trainer.precision, gpu.trainer.precision) == ("32-true", "bf16-mixed")
    assert (cpu.data.workers, gpu.data.workers) == (0, 8)
    assert (cpu.inference.mirror, gpu.inference.mirror) == (False, True)
    assert cpu.inference.batch_size == cpu.data.batch_size
    assert any("of the median volume" in note for note in plan_recipe(found, CPU).notes)


def test_too_little_memory_is_said_with_what_is_needed():
    with pytest.raises(ConfigError, match=r"0\.001 GB of memory are too few for u_mamba: 2 patches .* need 0\.\d+ GB"):
        plan_recipe(_volumes((64, 64, 64), (1, 1, 1)), dataclasses.replace(CPU, memory_gb=0.001))
    with pytest.raises(ConfigError, match="number above 0"):
        dataclasses.replace(CPU, memory_gb=0)


# pictures


def test_pictures_get_an_encoder_for_the_machine_and_patches_of_multiples_of_32():
    found = _dataset([_case(f"{n}", (584, 565)) for n in range(20)])
    cpu, gpu = plan_recipe(found, CPU).recipe, plan_recipe(found, dataclasses.replace(GPU, memory_gb=24)).recipe
    assert (cpu.model.net, cpu.model.encoder) == (None, "spatial_mamba_nano")
    assert (gpu.model.net, gpu.model.encoder) == (None, "spatial_mamba_tiny")
    # 0.5 GB less 16 bytes for each of 5.8 M weights are 0.407 GB; a pixel keeps 586 x 4 x 1.2 = 2813 bytes: eight
    # patches of 134^2 would fit, and of multiples of 32 those of 128^2 do
    assert cpu.data.patch_size == (128, 128) and cpu.data.batch_size == 8
    # 24 GB less 0.47 GB; 1320 x 2 x 1.2 = 3168 bytes a pixel: twelve of 786^2, and the whole picture is 608 x 576
    assert gpu.data.patch_size == (608, 576)
    assert gpu.data.batch_size == 2  # a twentieth of 20 pictures is one
    assert cpu.data.spacing is None


def test_tiny_pictures_get_a_net_that_halves_as_often_as_they_allow():
    plan = plan_recipe(_dataset([_case(f"{n}", (28, 28)) for n in range(200)]), CPU)
    assert plan.recipe.model.net == "u_mamba"
    assert plan.recipe.data.patch_size == (28, 28)  # 28 14 7: two halvings
    assert len(plan.recipe.model.net_args["strides"]) == 3
    assert "28 pixels is below 64" in _reason(plan, "model.net")


def test_augmentation_follows_the_kind_of_image():
    colour = _dataset([_case(f"{n}", (96, 96), channels=3) for n in range(4)], ("red", "green", "blue"))
    assert plan_recipe(colour, CPU).recipe.data.augment == "natural"
    assert plan_recipe(_dataset([_case(f"{n}", (96, 96)) for n in range(4)]), CPU).recipe.data.augment == "medical"


# normalisation


@pytest.mark.parametrize("name", ["CT", "ct", "CBCT", "LDCT", "ct_portal", "chest-CT"])
def test_ct_by_its_name_is_clipped_and_scaled_by_the_foreground(name):
    values = np.concatenate([np.full(10, -900.0), np.full(980, 50.0), np.full(10, 1500.0)])
    plan = plan_recipe(_volumes((64, 64, 64), (1, 1, 1), channels=(name,), foreground=values), CPU)
    found = plan.recipe.data.normalisation
    # a hundredth of the values are -900, a hundredth are 1500: percentiles 0.5 and 99.5 are these
    assert (found.method, found.low, found.high) == ("ct", -900, 1500)
    assert found.mean == pytest.approx(0.01 * -900 + 0.98 * 50 + 0.01 * 1500, abs=1e-3)
    assert found.std == pytest.approx(values.std(), rel=1e-4)
    assert f"named {name!r}" in _reason(plan, "data.normalisation.method")


@pytest.mark.parametrize("name", ["MRI", "T1w", "FLAIR", "PET", "fractional", "contact"])
def test_a_channel_named_otherwise_is_no_ct_whatever_its_values(name):
    found = _volumes((64, 64, 64), (1, 1, 1), channels=(name,), intensities=(-1024, 2000))
    assert plan_recipe(found, CPU).recipe.data.normalisation.method == "zscore"


@pytest.mark.parametrize("name", ["image", "channel_0", "0"])
def test_a_nameless_channel_is_ct_where_its_values_look_like_hounsfield_units(name):
    like = _volumes((64, 64, 64), (1, 1, 1), channels=(name,), intensities=(-1024, 2000))
    plan = plan_recipe(like, CPU)
    assert plan.recipe.data.normalisation.method == "ct"
    assert "-1024 to 2000 look like Hounsfield units" in _reason(plan, "data.normalisation.method")
    for intensities in ((0, 2000), (-3, 5), (-1024, 100), (-30000, 2000)):
        other = _volumes((64, 64, 64), (1, 1, 1), channels=(name,), intensities=intensities)
        assert plan_recipe(other, CPU).recipe.data.normalisation.method == "zscore"


def test_an_empty_ground_stays_out_of_the_statistics():
    skull_stripped = _volumes((64, 64, 64), (1, 1, 1), channels=("T1",), box=0.6)
    plan = plan_recipe(skull_stripped, CPU)
    assert plan.recipe.data.normalisation.method == "zscore_nonzero"
    assert "59%" in _reason(plan, "data.normalisation.method")  # 38 of 64 slices
    assert plan_recipe(_volumes((64, 64, 64), (1, 1, 1), box=0.8), CPU).recipe.data.normalisation.method == "zscore"


def test_several_channels_are_scaled_each_by_itself():
    plan = plan_recipe(_volumes((64, 64, 64), (1, 1, 1), channels=("CT", "PET")), CPU)
    assert plan.recipe.data.normalisation.method == "zscore"
    assert "only some of the channels are CT" in _reason(plan, "data.normalisation.method")


def test_ct_of_one_intensity_cannot_be_scaled_by_it():
    found = _volumes((64, 64, 64), (1, 1, 1), channels=("CT",), foreground=np.full(9, 7.0))
    assert plan_recipe(found, CPU).recipe.data.normalisation.method == "zscore"


# classes, memory of the machine


def test_rare_classes_get_half_of_the_patches():
    assert plan_recipe(_volumes((64, 64, 64), (1, 1, 1), share=0.01), CPU).recipe.data.foreground == 0.33
    plan = plan_recipe(_volumes((64, 64, 64), (1, 1, 1), share=0.0005), CPU)
    assert plan.recipe.data.foreground == 0.5
    assert "'organ', the rarest class, is 0.05% of all voxels" in _reason(plan, "data.foreground")


def test_a_class_that_no_case_shows_is_said():
    cases = [dataclasses.replace(_case(f"{n}", (64, 64, 64), (1, 1, 1)), voxels=(9, 0, 1)) for n in range(3)]
    plan = plan_recipe(_dataset(cases, classes=("background", "liver", "tumour")), CPU)
    assert plan.notes[0] == "the class 'liver' is in none of 3 training cases: the net cannot learn it."
    assert plan.recipe.data.num_classes == 3


def test_cases_that_do_not_fit_into_memory_are_kept_on_disk():
    found = _volumes((256, 256, 256), (1, 1, 1), num_cases=100)  # 100 x 16.8 M x 6 bytes x 1.2 = 12 GB
    assert plan_recipe(found, dataclasses.replace(CPU, free_gb=32)).recipe.data.cache == "memory"
    plan = plan_recipe(found, dataclasses.replace(CPU, free_gb=16))
    assert plan.recipe.data.cache == "disk"
    assert "12 GB, more than half of the 16 GB" in _reason(plan, "data.cache")


def test_a_machine_is_asked_for_what_is_not_given():
    assert machine_budget("cpu", 3).memory_gb == 3
    cpu = machine_budget("cpu")
    assert cpu.memory_gb == min(4, max(0.5, os.cpu_count() / 4)) and cpu.free_gb > 0
    assert machine_budget("gpu", 24).device == "gpu"


# what is given


def test_given_settings_win_and_the_plan_says_what_it_would_have_been():
    given = {"data.batch_size": 5, "model.lr": 1e-5, "data.foreground": 0.33, "trainer.max_epochs": 30}
    plan = plan_recipe(_volumes((64, 64, 64), (1, 1, 1)), CPU, given=given)
    recipe = plan.recipe
    assert (recipe.data.batch_size, recipe.model.lr, recipe.trainer.max_epochs) == (5, 1e-5, 30)
    assert recipe.trainer.val_every_epochs == 3  # 4 does not divide 30
    assert {decision.name for decision in plan.decisions if decision.given} == set(given)
    assert _reason(plan, "trainer.max_epochs").startswith("given; the plan would be 40: ")
    assert _reason(plan, "data.foreground") == "given; as planned"
    assert _reason(plan, "model.lr") == "given"


def test_a_given_patch_decides_the_dimensions_and_the_stages():
    found = _volumes((64, 64, 64), (1, 1, 1))
    flat = plan_recipe(found, CPU, given={"data.patch_size": (64, 64)}).recipe
    assert flat.data.spatial_dims == 2 and flat.model.encoder == "spatial_mamba_nano" and flat.model.net is None
    deep = plan_recipe(found, CPU, given={"data.patch_size": (16, 32, 32)}).recipe
    assert deep.data.patch_size == (16, 32, 32)
    assert np.prod(deep.model.net_args["strides"], axis=0).tolist() == [4, 8, 8]
    assert deep.model.deep_supervision
    odd = plan_recipe(found, CPU, given={"data.patch_size": (18, 32, 32)}).recipe
    assert not odd.model.deep_supervision
    whole = plan_recipe(found, CPU, given={"data.patch_size": None}).recipe
    assert whole.data.patch_size is None and whole.model.net is None
    with pytest.raises(ConfigError, match="holds pictures: give 2 sides"):
        plan_recipe(_dataset([_case("a", (96, 96))]), CPU, given={"data.patch_size": (8, 32, 32)})


def test_a_given_net_decides_what_is_planned_for_it():
    found = _volumes((64, 96, 96), (1, 1, 1))
    control = plan_recipe(found, CPU, given={"model.net": "residual_unet"}).recipe
    assert "strides" in control.model.net_args
    light = plan_recipe(found, dataclasses.replace(CPU, memory_gb=2), given={"model.net": "lightm_unet"}).recipe
    assert light.model.net_args == {} and not light.model.deep_supervision
    assert light.data.spatial_dims == 3 and all(side % 16 == 0 for side in light.data.patch_size)
    slices = plan_recipe(found, CPU, given={"model.encoder": "test_convnext"}).recipe
    assert slices.data.spatial_dims == 2 and slices.model.encoder == "test_convnext"
    own = {"model.net": "u_mamba", "model.net_args": {"features": [8, 16], "strides": [1, 2]}}
    kept = plan_recipe(found, CPU, given=own).recipe
    assert kept.model.net_args == own["model.net_args"] and not kept.model.deep_supervision
    with pytest.raises(UnknownName, match="u_mamba"):
        plan_recipe(found, CPU, given={"model.net": "u_mamb"})


def test_a_given_normalisation_stays_whole():
    given = {"data.normalisation.method": "range", "data.normalisation.low": -100.0, "data.normalisation.high": 300.0}
    found = plan_recipe(_volumes((64, 64, 64), (1, 1, 1), channels=("CT",)), CPU, given=given)
    normalisation = found.recipe.data.normalisation
    assert (normalisation.method, normalisation.low, normalisation.high) == ("range", -100, 300)
    assert normalisation.mean is None


def test_a_control_is_the_same_plan_without_a_state_space_layer():
    recipe = plan_recipe(_volumes((64, 64, 64), (1, 1, 1)), CPU, control=True).recipe
    assert recipe.control.net == "residual_unet" and recipe.control.net_args == recipe.model.net_args
    pictures = plan_recipe(_dataset([_case("a", (96, 96))]), CPU, control=True).recipe
    assert pictures.control.encoder == "convnext_atto" and pictures.control.net is None
    named = plan_recipe(_volumes((64, 64, 64), (1, 1, 1)), CPU, given={"control.net": "residual_unet"}).recipe
    assert named.control.net_args == named.model.net_args
    assert plan_recipe(_volumes((64, 64, 64), (1, 1, 1)), CPU).recipe.control is None


# the recipe


def _settings(tree, prefix: str = "") -> set[str]:
    return {
        name
        for key, value in tree.items()
        for name in (_settings(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key})
    }


@pytest.mark.parametrize(
    ("found", "given"),
    [
        (_volumes((64, 64, 64), (1, 1, 1), channels=("CT",)), {}),
        (_volumes((20, 256, 256), (3.6, 0.6, 0.6), channels=("T1", "T2")), {"model.lr": 3e-5}),
        (_dataset([_case(f"{n}", (96, 80)) for n in range(4)]), {"data.options": {"seed": 3}}),
        (_dataset([_case(f"{n}", (28, 20)) for n in range(4)]), {"run": Path("elsewhere: or not")}),
    ],
)
def test_the_written_recipe_reads_back_as_the_plan_with_every_reason(tmp_path, found, given):
    import yaml

    plan = plan_recipe(found, CPU, given=given, control=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(plan.text())
    assert read_recipe(path) == plan.recipe != SegmentationRecipe()
    text = " ".join(line.strip().removeprefix("# ") for line in path.read_text().splitlines())
    for decision in plan.decisions:
        assert decision.reason in text
    # what is in the file is what was decided, and no default besides
    decided = {decision.name for decision in plan.decisions if decision.is_setting}
    assert {name for name in _settings(yaml.safe_load(plan.text())) if not name.startswith("data.options.")} == {
        name for name in decided if name != "data.options"
    }


def test_the_same_data_give_the_same_plan(tmp_path):
    root = write_msd(tmp_path, shape=(40, 36, 12))
    texts = set()
    for jobs in (1, 3, 1):
        adapter, info = open_dataset(root)
        texts.add(plan_recipe(fingerprint_dataset(adapter, info, root, jobs=jobs), CPU).text())
    assert len(texts) == 1
