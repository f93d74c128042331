"""State fusion's cases: small ones for every check, large ones for GPUs, and sizes as Spatial-Mamba uses them."""

from __future__ import annotations

from typing import Any

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.state_fusion import state_fusion
from statefield.kernels.state_fusion.op import OPS


def arguments(*sizes: int, dilations: tuple[int, ...] = (1, 3, 5), reads: str = "CDu") -> Variant:
    """A call of state fusion over a map or volume of sizes B, *S, N, E.

    Args: reads: "" gives the fused states, "C" reads them out, "CDu" adds the skip.
    """
    *grid, states, channels = sizes  # B with S

    def make(randn: Randn) -> dict[str, Any]:
        given: dict[str, Any] = {
            "h": randn(*sizes),
            "weight": randn(len(dilations), channels, *[3] * (len(grid) - 1)),
            "alpha": randn(len(dilations)),
            "dilations": dilations,
        }
        if "C" in reads:
            given["C"] = randn(*grid, states)
        if "D" in reads:
            given |= {"D": randn(channels), "u": randn(*grid, channels)}
        return given

    return make


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    names = ("h", "weight", "alpha", "C", "D", "u")
    return (*(given.get(name) for name in names), list(given["dilations"]))


MAPS = Family(
    name="state_fusion",
    function=state_fusion,
    variants={
        "tiny": arguments(1, 2, 3, 2, 2),
        "one_pixel": arguments(1, 1, 1, 1, 1),
        "odd": arguments(2, 9, 7, 3, 11),
        "wide": arguments(1, 5, 17, 1, 40),
        "states_alone": arguments(2, 7, 5, 1, 9, reads=""),
        "other_dilations": arguments(1, 6, 7, 2, 8, dilations=(2, 4)),
        "one_dilation_sixteen_states": arguments(1, 2, 3, 16, 3, dilations=(1,)),
        "four_dilations": arguments(1, 3, 5, 3, 4, dilations=(1, 3, 5, 7), reads="C"),
        "two_far_dilations": arguments(1, 1, 3, 1, 2, dilations=(2, 7)),
        "one_far_dilation_on_a_tall_map": arguments(1, 18, 1, 1, 1, dilations=(17,), reads=""),
        "small_map": arguments(1, 4, 3, 1, 3),
        "one_column": arguments(2, 2, 1, 1, 2, reads="C"),
        "one_row_of_states": arguments(1, 1, 5, 3, 2, dilations=(2,), reads=""),
        "odd_dilations_beyond_the_map": arguments(1, 3, 4, 2, 1, dilations=(7, 1)),
    },
    op=OPS[2],
    op_arguments=_op_arguments,
    mapped=("h", "C", "u"),
    interpreted=(
        "two_far_dilations",
        "one_far_dilation_on_a_tall_map",
        "one_pixel",
        "small_map",
        "one_column",
        "one_row_of_states",
        "odd_dilations_beyond_the_map",
    ),
    large={
        "large_map": arguments(2, 56, 56, 1, 128),
        "large_channels": arguments(3, 14, 14, 1, 512),
        "large_odd": arguments(4, 7, 9, 4, 70, reads="C"),
        "large_states": arguments(1, 33, 47, 2, 96, dilations=(2, 4), reads=""),
    },
    compiled={"fusion, N = 1": Sized(arguments(2, 16, 16, 1, 128))},
    measured={
        "B 32, 56 x 56, E 128": Sized(arguments(32, 56, 56, 1, 128)),
        "B 32, 14 x 14, E 512": Sized(arguments(32, 14, 14, 1, 512)),
        "B 32, 7 x 7, E 1024": Sized(arguments(32, 7, 7, 1, 1024)),
    },
)

VOLUMES = Family(
    name="state_fusion_3d",
    function=state_fusion,
    variants={
        "tiny": arguments(1, 2, 1, 2, 2, 2, dilations=(1, 3)),
        "one_voxel": arguments(1, 1, 1, 1, 1, 1),
        "odd": arguments(2, 5, 4, 7, 2, 5),
        "wide": arguments(1, 3, 4, 17, 1, 40),
        "states_alone": arguments(2, 4, 5, 3, 1, 9, reads=""),
        "other_dilations": arguments(1, 6, 5, 7, 2, 8, dilations=(2, 4)),
        "sixteen_states": arguments(1, 2, 1, 3, 16, 3, dilations=(1,), reads="C"),
        "far_dilations": arguments(1, 3, 1, 4, 1, 2, dilations=(2, 7, 1000), reads="C"),
        "deep": arguments(1, 19, 2, 3, 1, 3, dilations=(1, 3, 5)),
        "many_rows": arguments(1, 2, 19, 2, 1, 17, dilations=(5, 1, 5), reads=""),
        "one_slice": arguments(2, 1, 4, 3, 1, 3),
    },
    op=OPS[3],
    op_arguments=_op_arguments,
    mapped=("h", "C", "u"),
    large={
        "large_volume": arguments(2, 24, 24, 24, 1, 64),
        "large_odd": arguments(3, 7, 9, 11, 2, 70, reads="C"),
    },
    measured={
        "B 2, 32 x 32 x 32, E 64": Sized(arguments(2, 32, 32, 32, 1, 64)),
        "B 2, 8 x 8 x 8, E 256": Sized(arguments(2, 8, 8, 8, 1, 256)),
    },
)

FAMILIES = (MAPS, VOLUMES)
