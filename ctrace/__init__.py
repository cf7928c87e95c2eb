"""Channel Tracing and Attribution: which channels, regions, parts and training images made the
model say this?
"""

from ctrace.cut.affinity import bandwidth, cosine_affinity, rbf_affinity
from ctrace.cut.diagnose import diagnose
from ctrace.cut.eigenvectors import ncut_eigenvectors
from ctrace.cut.graph import Graph, PrecomputedGraph
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.cut.tracing import ChannelTrace, trace_channels
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.gradcam import GradCAM
from ctrace.look.parchgrad import ParchGrad
from ctrace.look.partition import default_convs
from ctrace.published import (
    channel_gradient_from_cluster,
    differentiable_kway_ncut,
    extract_topk_maps,
    rank_channels,
    reshape_for_view,
)
from ctrace.trust.hide import masking_curve
from ctrace.trust.localize import mass_inside
from ctrace.world.features import GridFeatures, conv_features, prepare_grid_features, timm_features
from ctrace.world.filterbank import filter_bank
from ctrace.world.models import load_model
from ctrace.world.photos import load_images_helper, load_photo, photo_names

__all__ = [
    "Graph",
    "PrecomputedGraph",
    "bandwidth",
    "cosine_affinity",
    "rbf_affinity",
    "diagnose",
    "kway_ncut",
    "Ncut",
    "ncut_eigenvectors",
    "GridFeatures",
    "filter_bank",
    "load_images_helper",
    "load_photo",
    "photo_names",
    "prepare_grid_features",
    "conv_features",
    "timm_features",
    "ChannelTrace",
    "trace_channels",
    "differentiable_kway_ncut",
    "channel_gradient_from_cluster",
    "rank_channels",
    "reshape_for_view",
    "extract_topk_maps",
    "GradCAM",
    "load_model",
    "ChannelStatistics",
    "ParchGrad",
    "default_convs",
    "mass_inside",
    "masking_curve",
]
