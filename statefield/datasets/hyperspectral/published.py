"""Published scenes in their own files: MATLAB (.mat), or ENVI (a data file beside a header .hdr).

Sources, with the sizes that are checked: Pavia University (ROSIS) and Salinas (AVIRIS) of the University of the Basque
Country's collection; Houston 2013, IEEE GRSS Data Fusion Contest (Debes et al. 2014, doi 10.1109/JSTARS.2014.2305441);
WHU-Hi (Zhong et al. 2020, doi 10.1016/j.rse.2020.112012). Variables of the .mat files are looked for by their published
names.

Houston 2013 and the WHU-Hi scenes have an official split: maps (or, of the contest, ENVI's text of regions) with the
labels of the training and of the test pixels. Where they are in the folder they are read, and checked against each
other and the map of all labels; of Houston 2013, which the contest gives no such map for, they are the labels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statefield.datasets.adapter import require_layout
from statefield.datasets.hyperspectral import indian_pines
from statefield.datasets.hyperspectral.adapter import SCENE_ADAPTERS, Scene, label_map, plain_meta, scene_of
from statefield.datasets.hyperspectral.regions import read_regions
from statefield.datasets.readers import raster
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.matlab import read_matlab
from statefield.datasets.sample import About, DatasetInfo, Meta
from statefield.errors import DataError, LabelError
from statefield.labels import UNLABELLED

_ENVI_DATA = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip")  # what may stand beside NAME.hdr


@dataclass(frozen=True)
class PublishedScene:
    """A folder with one cube and one map of labels, named as the publisher does.

    stems: names of the cube's file without its suffix, upper and lower case and - or _ alike, the likeliest first.
    variables, label_variables: names inside .mat files.
    train_stems, test_stems: of the maps of the official split, () where there is none; official_folder: a folder inside
        the scene's that may hold them.
    """

    name: str
    about: About
    size: tuple[int, int]
    bands: int
    classes: tuple[str, ...]
    stems: tuple[str, ...]
    label_stems: tuple[str, ...]
    variables: tuple[str, ...]
    label_variables: tuple[str, ...]
    train_stems: tuple[str, ...] = ()
    test_stems: tuple[str, ...] = ()
    official_folder: str = ""
    embedded = False

    @property
    def layout(self) -> str:
        cube, labels = self.stems[0], self.label_stems[0]
        height, width = self.size
        tree = (
            f"FOLDER/\n"
            f"|-- {cube}.mat   {height} x {width} x {self.bands}   (or ENVI: {cube}.hdr and {cube}, .dat, .img, .bsq; "
            "or .tif)\n"
            f"`-- {labels}.mat   {height} x {width}, 0..{len(self.classes)}   (or likewise)"
        )
        if self.train_stems:
            within = f"{self.official_folder}/" if self.official_folder else ""
            tree += (
                f"\nfor --split official, also\n|-- {within}{self.train_stems[0]}.mat (or .txt of regions, ENVI, .tif)"
                f"\n`-- {within}{self.test_stems[0]}.mat (or likewise)"
            )
        return tree

    def mismatch(self, root: Path) -> str | None:
        if _find(root, self.stems) is None:
            return f"no cube {' or '.join(self.stems)} (.mat, .tif, or .hdr with its data file) in it"
        if _find(root, self.label_stems) is None and self._find_official(root) is None:
            official = (
                f", and no official split {self.train_stems[0]}, {self.test_stems[0]}" if self.train_stems else ""
            )
            return (
                f"no map of labels {' or '.join(self.label_stems)} (.mat, .tif, or .hdr with its data file){official}"
            )
        return None

    def describe(self, root: Path | None = None) -> DatasetInfo:
        return DatasetInfo(self.classes, tuple(f"band_{k}" for k in range(1, self.bands + 1)), spatial_dims=2)

    def load(self, root: Path | None) -> Scene:
        root = require_layout(self, root)
        cube_at, labels_at = _find(root, self.stems), _find(root, self.label_stems)
        assert cube_at is not None  # require_layout has found it
        cube, meta = self._read(cube_at, self.variables, 3)
        found = self._find_official(root)
        official = None if found is None else self._read_official(*found)
        if labels_at is not None:
            labels, _ = self._read(labels_at, self.label_variables, 2)
        else:
            assert found is not None and official is not None
            labels_at, labels = found[0], np.maximum(*official) + 1  # UNLABELLED is -1: no label is 0
        scene = scene_of(cube, labels, self.describe(), meta, self.size, labels_at)
        if official is None or found is None:
            return scene
        for path, part in zip(found, official, strict=True):
            differ = int(((part != UNLABELLED) & (part != scene.labels)).sum())
            if differ:
                raise LabelError(
                    f"{path}: {differ} pixels have another label than in {labels_at}: files of one release are needed."
                )
        return dataclasses.replace(scene, official=official)

    def _find_official(self, root: Path) -> tuple[Path, Path] | None:
        """The maps of the training and of the test pixels, where both are there."""
        if not self.train_stems:
            return None
        for folder in (root, root / self.official_folder):
            found = [
                _find(folder, stems, regions=True) if folder.is_dir() else None
                for stems in (self.train_stems, self.test_stems)
            ]
            if found[0] is not None and found[1] is not None:
                return found[0], found[1]
        return None

    def _read_official(self, train_at: Path, test_at: Path) -> tuple[np.ndarray, np.ndarray]:
        """int64 [H, W] twice, `UNLABELLED` where a pixel is not of the part."""
        if (train_at.suffix.lower() == ".txt") != (test_at.suffix.lower() == ".txt"):
            raise DataError(
                f"{train_at.name} and {test_at.name} in {train_at.parent}: both as maps or both as regions."
            )
        if train_at.suffix.lower() == ".txt":
            regions = [read_regions(path, self.size) for path in (train_at, test_at)]
            order = [region.name for region in regions[0]]
            maps = []
            for path, parts in zip((train_at, test_at), regions, strict=True):
                if len(parts) != len(self.classes):
                    raise LabelError(
                        f"{path}: {len(parts)} regions found; {len(self.classes)}, one a class, are needed."
                    )
                same = sorted(order) == sorted(part.name for part in parts)
                labels = np.zeros(self.size, np.int64)
                for position, part in enumerate(parts):
                    number = order.index(part.name) if same else position
                    labels[part.pixels[:, 0], part.pixels[:, 1]] = number + 1
                maps.append(labels)
        else:
            maps = [self._read(path, (path.stem,), 2)[0] for path in (train_at, test_at)]
        train, test = (
            label_map(labels, self.describe(), self.name, self.size, path)
            for labels, path in zip(maps, (train_at, test_at), strict=True)
        )
        both = int(((train != UNLABELLED) & (test != UNLABELLED)).sum())
        if both:
            raise LabelError(
                f"{test_at}: {both} of its pixels are in {train_at.name}, too: test pixels must be others."
            )
        return train, test

    def _read(self, path: Path, variables: tuple[str, ...], ndim: int) -> tuple[np.ndarray, Meta]:
        """[H, W, C] or, of a map, [H, W]."""
        if path.suffix.lower() == ".mat":
            return read_matlab(path, variables, ndim), plain_meta(self.name, path)
        driver = raster.DRIVER if path.suffix.lower() in raster.SUFFIXES else "ENVI"
        with raster.opened(path, driver=driver) as dataset:
            header = raster.header_of(dataset)
            what = f"{header.num_bands} bands of {header.height} x {header.width} pixels"
            itemsize = max(4, *(np.dtype(kind).itemsize for kind in header.dtypes))
            require_memory(path, itemsize * header.num_bands * header.height * header.width, what)
            array = np.moveaxis(dataset.read(), 0, -1)
        if ndim == 2:
            if array.shape[-1] != 1:
                raise DataError(f"{path}: {array.shape[-1]} bands found; a map of labels has one.")
            array = array[..., 0]
        return array, raster.meta_of(header, case=self.name)


def _find(root: Path, stems: tuple[str, ...], *, regions: bool = False) -> Path | None:
    """The .mat or .tif (or .txt of regions), or else the data file of the ENVI pair, whose name is one of `stems`."""
    alone = (".mat", *raster.SUFFIXES, *((".txt",) if regions else ()))
    wanted = [_plain(stem) for stem in stems]
    files = sorted(path for path in root.iterdir() if path.is_file())
    for stem in wanted:
        for path in files:
            if path.suffix.lower() in alone and _plain(path.stem) == stem:
                return path
        for header in files:
            if header.suffix.lower() == ".hdr" and _plain(header.stem) in {stem + end for end in _ENVI_DATA}:
                beside = [path for path in files if path != header and _belongs(path, header)]
                if beside:
                    return beside[0]
    return None


def _belongs(data: Path, header: Path) -> bool:
    """ENVI writes the header of scene.dat as scene.hdr or as scene.dat.hdr."""
    return data.name == header.stem or (data.stem == header.stem and data.suffix.lower() in _ENVI_DATA)


def _plain(stem: str) -> str:
    return stem.lower().replace("-", "_")


def _collection(title: str, task: str) -> About:
    return About(
        title=title,
        task=task,
        split="by the experiment: blocks apart, or at random",
        labels="0 no label, then the classes from 1",
        terms="public research data; see the collection's page",
        source="Hyperspectral Remote Sensing Scenes, University of the Basque Country",
    )


def _register(scene: PublishedScene) -> PublishedScene:
    return SCENE_ADAPTERS.register(scene.name)(scene)  # type: ignore[return-value]


INDIAN_PINES = _register(
    PublishedScene(
        name="indian_pines_mat",
        about=_collection("Indian Pines", "16 classes, AVIRIS, 145 x 145 pixels, 200 bands"),
        size=indian_pines.SIZE,
        bands=indian_pines.BANDS,
        classes=indian_pines.CLASSES,
        stems=("Indian_pines_corrected",),
        label_stems=("Indian_pines_gt",),
        variables=("indian_pines_corrected",),
        label_variables=("indian_pines_gt",),
    )
)

PAVIA_UNIVERSITY = _register(
    PublishedScene(
        name="pavia_university",
        about=_collection("Pavia University", "9 classes of a town, ROSIS, 610 x 340 pixels of 1.3 m, 103 bands"),
        size=(610, 340),
        bands=103,
        classes=(
            "asphalt",
            "meadows",
            "gravel",
            "trees",
            "painted_metal_sheets",
            "bare_soil",
            "bitumen",
            "self_blocking_bricks",
            "shadows",
        ),
        stems=("PaviaU",),
        label_stems=("PaviaU_gt",),
        variables=("paviaU",),
        label_variables=("paviaU_gt",),
    )
)

SALINAS = _register(
    PublishedScene(
        name="salinas",
        about=_collection("Salinas", "16 classes of crops, AVIRIS, 512 x 217 pixels of 3.7 m, 204 bands"),
        size=(512, 217),
        bands=204,
        classes=(
            "broccoli_green_weeds_1",
            "broccoli_green_weeds_2",
            "fallow",
            "fallow_rough_plow",
            "fallow_smooth",
            "stubble",
            "celery",
            "grapes_untrained",
            "soil_vineyard_develop",
            "corn_senesced_green_weeds",
            "lettuce_romaine_4wk",
            "lettuce_romaine_5wk",
            "lettuce_romaine_6wk",
            "lettuce_romaine_7wk",
            "vineyard_untrained",
            "vineyard_vertical_trellis",
        ),
        stems=("Salinas_corrected",),
        label_stems=("Salinas_gt",),
        variables=("salinas_corrected",),
        label_variables=("salinas_gt",),
    )
)

HOUSTON_2013 = _register(
    PublishedScene(
        name="houston2013",
        about=About(
            title="Houston 2013",
            task="15 classes of a town, CASI-1500, 349 x 1905 pixels of 2.5 m, 144 bands",
            split="by the experiment: blocks apart, or at random; or the contest's own",
            labels="0 no label, 1 to 15",
            terms="IEEE GRSS Data Fusion Contest 2013; registration with the organisers",
            source="Debes et al. 2014, doi 10.1109/JSTARS.2014.2305441",
        ),
        size=(349, 1905),
        bands=144,
        classes=(
            "healthy_grass",
            "stressed_grass",
            "synthetic_grass",
            "trees",
            "soil",
            "water",
            "residential",
            "commercial",
            "road",
            "highway",
            "railway",
            "parking_lot_1",
            "parking_lot_2",
            "tennis_court",
            "running_track",
        ),
        stems=("Houston", "Houston2013", "DFC2013_Houston", "2013_IEEE_GRSS_DF_Contest_CASI"),
        label_stems=("Houston_gt", "Houston2013_gt", "DFC2013_Houston_gt"),
        variables=("Houston", "DFC2013_Houston"),
        label_variables=("Houston_gt", "DFC2013_Houston_gt", "gt"),
        train_stems=("2013_IEEE_GRSS_DF_Contest_Samples_TR", "Houston_TR", "TRLabel"),
        test_stems=("2013_IEEE_GRSS_DF_Contest_Samples_VA", "Houston_TE", "TSLabel"),
    )
)

# the official samples are Train100.mat and Test100.mat of each scene; in the ENVI release these stand before them
_WHU_HI_PREFIX = {"LongKou": "LK", "HanChuan": "HC", "HongHu": "HH"}
_WHU_HI = {
    "LongKou": (
        (550, 400),
        270,
        "corn, cotton, sesame, broad_leaf_soybean, narrow_leaf_soybean, rice, water, roads_and_houses, mixed_weed",
    ),
    "HanChuan": (
        (1217, 303),
        274,
        "strawberry, cowpea, soybean, sorghum, water_spinach, watermelon, greens, trees, grass, red_roof, gray_roof, "
        "plastic, bare_soil, road, bright_object, water",
    ),
    "HongHu": (
        (940, 475),
        270,
        "red_roof, road, bare_soil, cotton, cotton_firewood, rape, chinese_cabbage, pakchoi, cabbage, tuber_mustard, "
        "brassica_parachinensis, brassica_chinensis, small_brassica_chinensis, lactuca_sativa, celtuce, "
        "film_covered_lettuce, romaine_lettuce, carrot, white_radish, garlic_sprout, broad_bean, tree",
    ),
}
for _place, (_size, _bands, _classes) in _WHU_HI.items():
    _register(
        PublishedScene(
            name=f"whu_hi_{_place.lower()}",
            about=About(
                title=f"WHU-Hi-{_place}",
                task=f"{_classes.count(',') + 1} classes, UAV, {_size[0]} x {_size[1]} pixels, {_bands} bands",
                split="by the experiment: blocks apart, or at random; or the publisher's 100 a class",
                labels=f"0 no label, 1 to {_classes.count(',') + 1}",
                terms="free for research; cite the authors",
                source="Zhong et al. 2020, doi 10.1016/j.rse.2020.112012",
            ),
            size=_size,
            bands=_bands,
            classes=tuple(_classes.split(", ")),
            stems=(f"WHU_Hi_{_place}",),
            label_stems=(f"WHU_Hi_{_place}_gt",),
            variables=(f"WHU_Hi_{_place}",),
            label_variables=(f"WHU_Hi_{_place}_gt",),
            train_stems=("Train100", f"{_WHU_HI_PREFIX[_place]}Train100"),
            test_stems=("Test100", f"{_WHU_HI_PREFIX[_place]}Test100"),
            official_folder="Training samples and test samples",
        )
    )
