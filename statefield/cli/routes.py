"""`statefield routes [NAME --shape 4 6]`: list the scan orders, or draw one as the step of each visit."""

from __future__ import annotations

import argparse


def routes(argv: list[str]) -> int:
    """List the routes, or draw the one that is named; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="statefield routes", description="List the scan orders, or draw one as numbers: the step of each visit."
    )
    parser.add_argument("name", nargs="?", help="a route; with ~ behind it, the reversed one")
    parser.add_argument(
        "--shape", type=int, nargs="+", default=[4, 6], metavar="SIZE", help="sizes of the grid's axes (default: 4 6)"
    )
    options = parser.parse_args(argv)

    from statefield.kernels.routes import ROUTES, inverse_order, route_order  # here: it imports torch

    if options.name is None:
        width = max(map(len, ROUTES))
        for name, entry in ROUTES.items():
            grids = ", ".join(f"{dims}-D" for dims in entry.spatial_dims)
            print(f"{name:<{width}}  {grids:<13}  {entry.summary}")
        print("\nNAME~ is the route walked backwards. Draw one: statefield routes NAME --shape 4 6")
        return 0
    steps = inverse_order(route_order(options.name, tuple(options.shape))).view(options.shape).tolist()
    print(_drawing(steps, digits=len(str(max(_flat(steps))))))
    return 0


def _flat(steps: list) -> list[int]:
    return [number for part in steps for number in (_flat(part) if isinstance(part, list) else [part])]


def _drawing(steps: list, digits: int) -> str:
    """Rows of right-aligned numbers; the slices of a volume are parted by an empty line."""
    if isinstance(steps[0], list):
        parts = [_drawing(part, digits) for part in steps]
        return ("\n\n" if isinstance(steps[0][0], list) else "\n").join(parts)
    return " ".join(f"{number:>{digits}}" for number in steps)
