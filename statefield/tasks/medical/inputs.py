"""From what a user names (files, folders, nnU-Net's `_0000` channel files) to cases, and to the files they will become.

Looks at names, and into a picture's header where a name alone could mean two things; reads no pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from statefield.datasets.adapter import case_name
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import nifti
from statefield.errors import ConfigError, DataError

_CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class InputCase:
    """A case to predict: its name and its files, one per channel or one that holds all channels."""

    name: str
    files: tuple[Path, ...]

    @property
    def is_volume(self) -> bool:
        return self.files[0].name.lower().endswith(nifti.SUFFIXES)


@dataclass(frozen=True)
class OutputFiles:
    """Where the files of a case go; None for what was not asked for."""

    labels: Path
    probabilities: Path | None
    overlay: Path | None

    def wanted(self) -> tuple[Path, ...]:
        """All files that were asked for."""
        return tuple(path for path in (self.labels, self.probabilities, self.overlay) if path is not None)

    def missing(self) -> tuple[Path, ...]:
        """Those that do not exist yet."""
        return tuple(path for path in self.wanted() if not path.exists())


def find_cases(inputs: Sequence[Path], num_channels: int) -> list[InputCase]:
    """The cases among `inputs`: each a file, or a folder whose image files are taken (its sub-folders are not).

    A net of one channel takes every file as a case. A net of several takes `case_0000`, `case_0001`, ... of one folder
    as the channels of `case`, numbered in the order of training; naming the first is enough. A file without such a
    number, or numbered although it holds all channels itself, is a case by itself. The name of a case is that of its
    file without the format's suffix, and without `_0000` where all inputs carry it.

    Raises:
        DataError: an input that does not exist, a file of no known format, a folder without images.
        ConfigError: a case some of whose channel files are missing, or two inputs with the same case name.
    """
    files = list(dict.fromkeys(file for path in inputs for file in _image_files(path)))
    if num_channels == 1:
        all_numbered = all((match := _numbered(file)) and int(match["channel"]) == 0 for file in files)
        cases = [InputCase(_case_of(file) if all_numbered else case_name(file), (file,)) for file in files]
    else:
        cases = list(_joined(files, num_channels))
    _require_distinct(cases)
    return cases


def place_outputs(
    cases: Sequence[InputCase], output: Path, *, probabilities: bool = False, overlay: bool = False
) -> list[OutputFiles]:
    """Where each case's files go. `output` is a file where it ends in .nii, .nii.gz or .png, else a folder.

    Raises: ConfigError where one file is named for several cases, where its format is not the case's, or where an
        output would replace an input.
    """
    is_file = output.name.lower().endswith((*nifti.SUFFIXES, ".png")) and not output.is_dir()
    if is_file and len(cases) > 1:
        raise ConfigError(f"--output {output} is one file, but {len(cases)} cases are to be predicted: name a folder.")
    if not is_file and output.is_file():
        raise ConfigError(f"--output {output} is a file, and no .nii, .nii.gz or .png: name such a file, or a folder.")
    placed = []
    for case in cases:
        labels = output if is_file else output / f"{case.name}{_suffix_for(case)}"
        if case.is_volume != labels.name.lower().endswith(nifti.SUFFIXES):
            fitting = ".nii.gz or .nii" if case.is_volume else ".png"
            kind = "a volume" if case.is_volume else "a picture"
            raise ConfigError(f"--output {labels}: {case.files[0]} is {kind}; its labels are written as {fitting}.")
        stem = case_name(labels)
        files = OutputFiles(
            labels=labels,
            probabilities=labels.with_name(f"{stem}_probabilities{_suffix_for(case) if case.is_volume else '.npz'}")
            if probabilities
            else None,
            overlay=labels.with_name(f"{stem}_overlay.png") if overlay else None,
        )
        placed.append(files)
    _require_apart(cases, placed)
    return placed


def _image_files(path: Path) -> list[Path]:
    suffixes = (*nifti.SUFFIXES, *image_reader.SUFFIXES)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(suffixes))
        files = [file for file in files if not file.name.startswith(".")]
        if not files:
            raise DataError(f"{path}: no image in this folder; files ending in {', '.join(suffixes)} are needed.")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    if not path.name.lower().endswith(suffixes):
        raise DataError(f"{path}: not an image that can be read; a name ending in {', '.join(suffixes)} is needed.")
    return [path]


def _numbered(file: Path) -> re.Match[str] | None:
    return _CHANNEL_SUFFIX.fullmatch(case_name(file))


def _case_of(file: Path) -> str:
    match = _numbered(file)
    return match["case"] if match else case_name(file)


def _joined(files: Sequence[Path], num_channels: int) -> Iterator[InputCase]:
    """Cases of a net with several channels."""
    groups: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for file in files:
        match = _numbered(file)
        if match is None or _holds_channels(file, num_channels):
            yield InputCase(_name_alone(file, files), (file,))
        else:
            suffix = file.name[len(case_name(file)) :]
            groups.setdefault((file.parent, match["case"], suffix), {})[int(match["channel"])] = file
    for (folder, case, suffix), found in groups.items():
        channels = {index: folder / f"{case}_{index:04d}{suffix}" for index in range(num_channels)}
        missing = [path.name for path in channels.values() if not path.exists()]
        if set(found) == {0} and len(missing) == num_channels - 1:
            yield InputCase(case, (found[0],))  # nnU-Net's name for a file that holds all channels; loading checks it
        elif missing or set(found) - set(channels):
            too_many = sorted(found[index].name for index in set(found) - set(channels))
            wrong = f"{', '.join(missing)} missing" if missing else f"{', '.join(too_many)} not expected"
            raise ConfigError(
                f"{folder / case}: the net takes {num_channels} channels, {case}_0000{suffix} to "
                f"{channels[num_channels - 1].name}, but {wrong}. Complete the case, or take its files out."
            )
        else:
            yield InputCase(case, tuple(channels.values()))


def _holds_channels(file: Path, num_channels: int) -> bool:
    """Whether a numbered picture has all channels itself (an RGB frame, say). Damaged ones are judged when loaded."""
    if not file.name.lower().endswith(image_reader.SUFFIXES):
        return False
    try:
        return image_reader.num_channels_of(file) == num_channels
    except DataError:
        return False


def _name_alone(file: Path, files: Sequence[Path]) -> str:
    all_first = all((match := _numbered(other)) and int(match["channel"]) == 0 for other in files)
    return _case_of(file) if all_first else case_name(file)


def _require_distinct(cases: Sequence[InputCase]) -> None:
    seen: dict[tuple[str, str], InputCase] = {}
    for case in cases:
        key = (case.name, _suffix_for(case))
        if key in seen:
            raise ConfigError(
                f"{seen[key].files[0]} and {case.files[0]}: both cases are named {case.name!r}, so their predictions "
                "would be one file. Predict them into different folders."
            )
        seen[key] = case


def _require_apart(cases: Sequence[InputCase], placed: Sequence[OutputFiles]) -> None:
    inputs = {file.resolve() for case in cases for file in case.files}
    for files in placed:
        for output in files.wanted():
            if output.resolve() in inputs:
                raise ConfigError(
                    f"--output: {output} is an input, and would be replaced. Name another folder or file."
                )


def _suffix_for(case: InputCase) -> str:
    name = case.files[0].name.lower()
    if case.is_volume:
        return ".nii.gz" if name.endswith(".nii.gz") else ".nii"
    return ".png"
