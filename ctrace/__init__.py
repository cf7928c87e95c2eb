"""Channel Tracing and Attribution: which channels, regions, parts and training images made the
model say this?
"""

from ctrace.affinity import bandwidth, cosine_affinity, rbf_affinity
from ctrace.channel_statistics import ChannelStatistics
from ctrace.convs import default_convs
from ctrace.diagnose import diagnose
from ctrace.eigenvectors import ncut_eigenvectors
from ctrace.features import GridFeatures
from ctrace.filterbank import filter_bank
from ctrace.gradcam import GradCAM
from ctrace.graph import Graph, PrecomputedGraph
from ctrace.kway import kway_ncut
from ctrace.masking_curves import masking_curve, mass_inside
from ctrace.models import load_model
from ctrace.ncut import Ncut
from ctrace.parchgrad import ParchGrad
from ctrace.photos import load_images_helper, load_photo, photo_names
from ctrace.token_features import prepare_grid_features, timm_features
from ctrace.tracing import (
    ChannelTrace,
    channel_gradient_from_cluster,
    differentiable_kway_ncut,
    extract_topk_maps,
    rank_channels,
    reshape_for_view,
    trace_channels,
)

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
