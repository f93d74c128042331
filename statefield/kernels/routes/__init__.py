"""Scan orders of an image or a volume as permutations of its cells.

>>> from statefield.kernels.routes import route_order
>>> route_order("snake", (2, 3)).tolist()
[0, 1, 2, 5, 4, 3]
>>> route_order("snake~", (2, 3)).tolist()
[3, 4, 5, 2, 1, 0]
"""

from statefield.kernels.routes import grid as _grid  # noqa: F401  (files its routes in ROUTES)
from statefield.kernels.routes.order import ROUTES, Route, inverse_order, route, route_order

__all__ = ["ROUTES", "Route", "inverse_order", "route", "route_order"]
