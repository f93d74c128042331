"""Vision-LSTM's goldens: both versions of the model, a pair of blocks, one block, and the mixer alone."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import create_model, vil
from statefield.backbones._isotropic import resize_positions
from statefield.backbones._mixers import MatrixMemoryMixer
from statefield.backbones.vil import ViL, ViLBlock
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_path", "drop_path_rate", "drop_path_decay", "init_weights", "num_blocks")
_BLOCK = {"conv_kernel_size": "taps", "proj_bias": "bias", "norm_bias": "norm_bias"}
_MODEL = {"dim": "dim", "patch_size": "patch_size", "stride": "stride", "legacy_norm": "legacy_norm"}
_CONVS = {"2d": "2d", "causal1d": "causal"}
_POOLINGS = {"bilateral_flatten": "flatten", "bilateral_avg": "mean"}
_DIRECTIONS = ("rowwise_from_top_left", "rowwise_from_bot_right")


def _known(value: Any, table: dict[str, Any], argument: str) -> Any:
    if value not in table:
        raise ConfigError(f"the official {argument} {value!r} has no counterpart; those that have: {', '.join(table)}.")
    return table[value]


def _reads_backwards(direction: str) -> bool:
    direction = str(getattr(direction, "value", direction)).lower().rsplit(".")[-1]
    return _known(direction, dict(zip(_DIRECTIONS, (False, True), strict=True)), "direction")


def _model(version: int) -> Any:
    def build(kwargs: dict[str, Any]) -> Built:
        kwargs = dict(kwargs)
        options: dict[str, Any] = {"version": version, "legacy_norm": False}
        channels, height, width = kwargs.pop("input_shape", (3, 224, 224))
        options |= {"in_chans": channels, "img_size": (height, width)}
        together = version  # blocks of ours in one of theirs
        options["num_layers"] = together * kwargs.pop("depth", 24 // together)
        mode = kwargs.pop("mode", "classifier")
        classes = kwargs.pop("output_shape", (1000,))
        options["num_classes"] = classes[0] if mode == "classifier" else 0
        if "conv_kind" in kwargs:
            options["conv"] = _known(kwargs.pop("conv_kind"), _CONVS, "conv_kind")
        if "pooling" in kwargs and mode == "classifier":
            options["pooling"] = _known(kwargs["pooling"], _POOLINGS, "pooling")
        pooling = kwargs.pop("pooling", None)
        if kwargs.pop("alternation", "bidirectional") != "bidirectional":
            raise ConfigError("only the official alternation 'bidirectional' has a counterpart.")
        model = create_model("vil2_tiny", **options | take(kwargs, _MODEL | _BLOCK, _TRAINING_ONLY))

        def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
            found, tokens = _outputs(model, inputs["x"], together)
            grid = model.learned_grid
            first = model.forward_head(tokens) if mode == "classifier" else tokens
            if pooling == "to_image":
                first = first.unflatten(1, grid).permute(0, 3, 1, 2)
            return {"logits": first, "pos_embed.embed": model.pos_embed.unflatten(1, grid)} | found

        return Built(run, model, _resizing_filter)

    return build


def _outputs(model: nn.Module, x: Tensor, together: int) -> tuple[dict[str, Tensor], Tensor]:
    """What every block of the authors' (`together` of ours) gives, by the golden's names, and the normalised tokens."""
    found: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _, __, y, name=f"output of blocks.{index}": found.update({name: y}))
        for index, block in enumerate(list(model.blocks)[together - 1 :: together])
    ]
    tokens = model.forward_features(x)
    for handle in handles:
        handle.remove()
    # longest names first: "output of blocks.1" also begins "output of blocks.11"
    return dict(sorted(found.items(), key=lambda item: -len(item[0]))) | {"output of norm": tokens}, tokens


def _resizing_filter(entries: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """As the authors' models load a file: positions of another grid are resized to the model's."""
    assert isinstance(model, ViL) and model.learned_grid is not None
    positions = entries.get("pos_embed.embed")
    if positions is not None and positions.shape[1:3] != model.learned_grid:
        resized = resize_positions(positions.flatten(1, 2), tuple(positions.shape[1:3]), model.learned_grid)
        entries = entries | {"pos_embed.embed": resized.unflatten(1, model.learned_grid)}
    return vil.checkpoint_filter_fn(entries, model)


builder("vil", "VisionLSTM2")(_model(2))
builder("vil", "VisionLSTM")(_model(1))


def _layer(kwargs: dict[str, Any], layer_defaults: dict[str, Any]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of one of our blocks from those of an official block or layer, and the grid that they name."""
    kwargs = dict(kwargs)
    grid = tuple(kwargs.pop("seqlens", None) or ())
    options = layer_defaults | {"reverse": _reads_backwards(kwargs.pop("direction", _DIRECTIONS[0]))}
    if "conv_kind" in kwargs:
        options["conv"] = _known(kwargs.pop("conv_kind"), _CONVS, "conv_kind")
    if "qkv_block_size" in kwargs:
        options["block"] = options["heads"] = kwargs.pop("qkv_block_size")
    if not kwargs.pop("conv_bias", True):
        raise ConfigError("only convolutions with a bias have a counterpart.")
    names = _BLOCK | {"dim": "dim", "kernel_size": "taps", "expansion": "expand"}
    return options | take(kwargs, names, _TRAINING_ONLY), grid


def _is_first(kwargs: dict[str, Any]) -> bool:
    """Whether a bare block or layer is the first version's: the second one's is always told how it convolves."""
    return not {"conv_kind", "conv_kernel_size", "seqlens", "norm_bias"} & set(kwargs)


_FIRST = {"conv": "causal", "bias": False, "norm_bias": False}


@builder("vil", "ViLBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    options, grid = _layer(kwargs, _FIRST if _is_first(kwargs) else {})
    block = ViLBlock(**options)
    return Built(lambda inputs: {"y": block(inputs["x"], grid)}, block, vil.checkpoint_filter_fn)


@builder("vil", "ViLLayer")
def _mixer(kwargs: dict[str, Any]) -> Built:
    options, grid = _layer(kwargs, _FIRST if _is_first(kwargs) else {})
    mixer = MatrixMemoryMixer(options.pop("dim"), **options)
    return Built(lambda inputs: {"y": mixer(inputs["x"], grid)}, mixer, vil.checkpoint_filter_fn)


@builder("vil", "ViLBlockPair")
def _pair(kwargs: dict[str, Any]) -> Built:
    options, grid = _layer(kwargs, {})
    pair = nn.ModuleDict({name: ViLBlock(**options | {"reverse": name == _DIRECTIONS[1]}) for name in _DIRECTIONS})

    def rename(entries: dict[str, Any], _: nn.Module) -> dict[str, Any]:
        return {
            f"{name}.{ours}": value
            for name, block in pair.items()
            for ours, value in vil.checkpoint_filter_fn(
                {key.removeprefix(f"{name}."): value for key, value in entries.items() if key.startswith(name)}, block
            ).items()
        }

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        y = inputs["x"]
        for block in pair.values():
            y = block(y, grid)
        return {"y": y}

    return Built(run, pair, rename)
