"""Scan orders of an image, a volume, a video or a sequence as permutations of its cells.

`statefield routes` lists them, `statefield routes hilbert --shape 6 8` draws one. Not here, because they are no
function of a shape: random orders drawn anew each time (RSMamba, ShuffleMamba), sequences that visit a cell more than
once (MSVMamba's low-resolution branch joins raster~, column and column~ end to end), and scans over channels.

>>> from statefield.kernels.routes import route_order
>>> route_order("snake", (2, 3)).tolist()
[0, 1, 2, 5, 4, 3]
>>> route_order("snake~", (2, 3)).tolist()
[3, 4, 5, 2, 1, 0]
"""

from statefield.kernels.routes import grid as _grid  # noqa: F401  (these file their routes in ROUTES)
from statefield.kernels.routes import hilbert as _hilbert  # noqa: F401
from statefield.kernels.routes import volume as _volume  # noqa: F401
from statefield.kernels.routes.order import ROUTES, Route, inverse_order, route, route_order

__all__ = ["ROUTES", "Route", "inverse_order", "route", "route_order"]
