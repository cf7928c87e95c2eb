"""Figures in one style: a few primitives, which pages fill, and galleries with captions.

Each `show_` function takes arrays, tensors or PIL images and returns a picture, a matplotlib
figure that a notebook displays by itself; its `axes` are there to be changed. None of them
opens a window, touches pyplot or leaves a setting changed. A figure that only one page needs is
drawn on that page, ``with viz.style():``. Conventions:

- A panel is drawn on its grid: one unit is one cell, row 0 on top.
- Signed maps share one symmetric scale, blue below zero, red above, white at zero. NaN is blank:
  no evidence.
- Segments keep their colour and their number in every panel. Segment -1 is blank.
"""

from ctrace.viz.canvas import WIDTH, as_rgb, new_picture, style
from ctrace.viz.charts import show_curves, show_hist, show_intervals, show_scatter
from ctrace.viz.paint import INK, NEGATIVE, POSITIVE, QUIET, enlarged, segment_colour, spotlight
from ctrace.viz.panels import Panel, show_grid
