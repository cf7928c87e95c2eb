"""Every figure of the book, in one style.

Each function takes arrays, tensors or PIL images and returns a `Picture`, a matplotlib figure that
a notebook displays by itself. No function opens a window, touches pyplot or leaves a setting
changed. Conventions:

- Photographs and maps are drawn on the feature grid: one unit is one cell, row 0 on top.
- Signed maps share one symmetric scale, blue below zero, red above, white at zero. NaN is blank:
  no evidence.
- Segments keep their colour and their number in every panel. Segment -1 is blank.
"""

from .cams import show_cams, show_overlays
from .canvas import (
    INK,
    LINE_STYLES,
    NEGATIVE,
    POSITIVE,
    QUIET,
    WIDTH,
    Picture,
    as_rgb,
    line_colour,
    new_picture,
    segment_colour,
    style,
)
from .carrot import show_flow, show_region_graph, show_ties, show_washout, token_colours
from .carrot_head import show_claims, show_refits, show_training_images
from .charts import show_curves, show_hist, show_intervals, show_scatter
from .panels import Panel, enlarged, laid_over, segment_borders, show_grid, spotlight
from .parchgrad import show_channels, show_mass, sweep_gif
from .scoreboard import score_table, show_scores
from .traces import show_joint_trace, show_ranking, show_trace
from .trust import (
    show_cascade,
    show_fading,
    show_masking,
    show_method_maps,
    show_null,
    show_rates,
    show_strata,
)

__all__ = [
    "INK",
    "LINE_STYLES",
    "NEGATIVE",
    "POSITIVE",
    "QUIET",
    "Panel",
    "as_rgb",
    "enlarged",
    "laid_over",
    "line_colour",
    "new_picture",
    "segment_borders",
    "show_grid",
    "spotlight",
    "style",
    "WIDTH",
    "Picture",
    "segment_colour",
    "show_cams",
    "show_channels",
    "show_claims",
    "show_curves",
    "show_flow",
    "show_hist",
    "show_intervals",
    "show_joint_trace",
    "show_mass",
    "show_overlays",
    "show_ranking",
    "show_refits",
    "show_region_graph",
    "show_scatter",
    "score_table",
    "show_scores",
    "show_ties",
    "show_trace",
    "show_training_images",
    "show_cascade",
    "show_fading",
    "show_masking",
    "show_method_maps",
    "show_null",
    "show_rates",
    "show_strata",
    "show_washout",
    "sweep_gif",
    "token_colours",
]
