"""The same numbers as the packages people already trust, where they compute the same thing.

Grad-CAM and its siblings, input attributions, Shapley values, ridge regression and the heat kernel
are compared in their own test files; here are Normalized Cut, part removal, imputation and rank
statistics, with a note on what has to be set for them to agree.
"""

import numpy as np
import pytest
import torch
from scipy import sparse

from ctrace.aviary import PARTS, Aviary, importance_table, render
from ctrace.cut.affinity import rbf_affinity
from ctrace.cut.eigenvectors import ncut_eigenvectors
from ctrace.cut.graph import PrecomputedGraph
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.stats import spearman
from ctrace.trust.hide import impute
from ctrace.world.models import load_model
from tests.reference import subspace_angle

DOUBLE = torch.float64
K = 4


def points(seed=0, n=120, c=6, spread=0.9):
    """Overlapping blobs: the eigengap at K is open, and no eigenvalue is repeated."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % K
    centres, noise = (torch.randn(m, c, generator=generator, dtype=DOUBLE) for m in (K, n))
    return 2 * centres[label] + spread * noise, label


def cut_value(W, labels):
    """Sum over segments of cut over volume."""
    inside = torch.nn.functional.one_hot(torch.as_tensor(labels).long()).to(W.dtype)
    return float(
        (1 - (inside * (W @ inside)).sum(0) / (inside * W.sum(1, keepdim=True)).sum(0)).sum()
    )


def cut(x, **settings):
    solver = Ncut(n_eig=K, **settings)
    return solver.fit_transform(x), solver


# ------------------------------------------------------------------------------------------------
# Normalized Cut


@pytest.mark.parametrize("affinity", ["rbf", "cosine"])
def test_eigenvectors_span_the_space_of_ncut_pytorch(affinity):
    theirs = pytest.importorskip("ncut_pytorch")
    x, sigma = points()[0].requires_grad_(), {"rbf": 2.0, "cosine": 0.5}[affinity]
    U, solver = cut(x.detach(), affinity=affinity, sigma=sigma)
    weigh = theirs.utils.math.rbf_affinity
    if affinity == "cosine":  # it raises every cosine weight by a thousandth

        def weigh(x, sigma):
            return theirs.utils.math.cosine_affinity(x, sigma=sigma) - 1e-3

    # without a gradient to keep it takes a randomised decomposition, which is a thousandth off
    vectors, eigval = theirs.ncut_fn(
        x, n_eig=K, sigma=sigma, affinity_fn=weigh, exact_gradient=True, no_propagation=True
    )[:2]
    assert subspace_angle(torch.linalg.qr(vectors.detach())[0], U) <= 1e-6
    assert (
        float((eigval.detach() - solver.eigval).abs().max()) <= 1e-7
    )  # it adds 1e-8 to the diagonal


@pytest.mark.parametrize("seed", range(3))
def test_eigenvectors_span_the_spectral_embedding_of_scikit_learn(seed):
    embed = pytest.importorskip("sklearn.manifold").spectral_embedding
    x, _ = points(seed)
    W = rbf_affinity(x, sigma=2.0)
    W.fill_diagonal_(
        0
    )  # scikit-learn ignores the diagonal: with ones on it the two graphs are not the same
    U, _ = ncut_eigenvectors(PrecomputedGraph(W), K)
    theirs = torch.from_numpy(
        embed(W.numpy(), n_components=K, drop_first=False, eigen_solver="arpack", random_state=0)
    )
    theirs = torch.linalg.qr(theirs * W.sum(1).sqrt()[:, None])[
        0
    ]  # it returns the vectors divided by the root of the degrees
    assert subspace_angle(theirs, U) <= 1e-7


@pytest.mark.parametrize("seed", range(3))
def test_segments_are_those_of_scikit_learn_and_cost_no_more(seed):
    cluster, score = (
        pytest.importorskip("sklearn.cluster"),
        pytest.importorskip("sklearn.metrics").adjusted_rand_score,
    )
    x, label = points(seed, spread=0.4)
    W = rbf_affinity(x, sigma=2.0)
    ours = kway_ncut(cut(x, sigma=2.0)[0]).argmax(1)
    for assign in ("kmeans", "discretize", "cluster_qr"):
        theirs = cluster.SpectralClustering(
            K, affinity="precomputed", assign_labels=assign, random_state=0
        ).fit_predict(W.numpy())
        assert score(theirs, ours) == 1 and score(label, ours) == 1
        assert cut_value(W, ours) <= cut_value(W, theirs) + 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_segments_of_overlapping_clusters_cost_no_more_than_scikit_learns(seed):
    cluster = pytest.importorskip("sklearn.cluster")
    x, _ = points(seed, spread=1.6)
    W = rbf_affinity(x, sigma=2.0)
    ours = cut_value(W, kway_ncut(cut(x, sigma=2.0)[0]).argmax(1))
    best = min(
        cut_value(
            W,
            cluster.SpectralClustering(
                K, affinity="precomputed", assign_labels=assign, random_state=0
            ).fit_predict(W.numpy()),
        )
        for assign in ("kmeans", "discretize", "cluster_qr")
    )
    assert ours <= best + 0.02
    eigval = cut(x, sigma=2.0)[1].eigval
    assert ours >= K - float(eigval.sum()) - 1e-9  # no k segments can do better than the relaxation


def test_the_gradient_of_a_projector_is_that_of_ncut_pytorch_and_of_plain_autograd():
    theirs = pytest.importorskip("ncut_pytorch")
    M = torch.randn(120, 120, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    found = {}
    for name in ("ours", "theirs", "autograd"):
        x = points()[0].requires_grad_()
        if name == "ours":
            U = cut(x, sigma=2.0, track_grad=True)[0]
        elif name == "theirs":
            U = theirs.ncut_fn(x, n_eig=K, sigma=2.0, exact_gradient=True, no_propagation=True)[0]
        else:
            W = rbf_affinity(x, sigma=2.0)
            U = torch.linalg.eigh(W * (W.sum(1)[:, None] * W.sum(1)[None]).rsqrt())[1][:, -K:]
        (found[name],) = torch.autograd.grad((M * (U @ U.T)).sum(), x)
    size = float(found["autograd"].norm())
    assert float((found["ours"] - found["autograd"]).norm()) <= 1e-7 * size
    assert float((found["theirs"] - found["autograd"]).norm()) <= 1e-5 * size


# ------------------------------------------------------------------------------------------------
# the toy world


@pytest.fixture(scope="module")
def bird():
    """Model, prepared image and image without parts, masks, scene and class of a held-out bird."""
    model, data = load_model("aviary-resnet-0", device="cpu"), Aviary("test", 300)
    scene = data.scene(4)
    whole, bare = render(scene), render(scene.without(*PARTS))
    images = model.info.preprocess(torch.stack([whole.image, bare.image]))
    return model, images, torch.stack([whole.masks[part] for part in PARTS]), scene, data.label(4)


def test_removal_importance_is_captums_feature_ablation_with_the_bare_bird_as_baseline(bird):
    attr = pytest.importorskip("captum.attr")
    model, images, masks, scene, target = bird
    regions = torch.where(masks.amax(0) > 0, masks.argmax(0) + 1, 0)  # 0: no part
    with torch.no_grad():
        theirs = attr.FeatureAblation(lambda x: model(x)[:, target] - model(x).mean(1)).attribute(
            images[:1], images[1:], feature_mask=regions[None, None]
        )[0, 0]
    ours = importance_table(model, [scene], [target], "removal")[0]
    for j in range(len(PARTS)):
        assert abs(float(theirs[regions == j + 1].unique()) - ours[j]) <= 1e-4
    assert float(theirs[regions == 0].abs().max()) <= 1e-5


def test_imputed_pixels_are_those_of_the_grad_cam_package(bird):
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    _, images, masks, _, _ = bird
    image, keep = images[0].double(), masks.sum(0) == 0
    system, right = road.NoisyLinearImputer.setup_sparse_system(
        keep.double().numpy(), image.numpy(), road.neighbors_weights
    )
    theirs = torch.from_numpy(
        sparse.linalg.spsolve(sparse.csc_matrix(system), right)
    ).T  # (3, hidden)
    ours = impute(image[None], ~keep[None])[0]
    assert float((ours[:, ~keep] - theirs).abs().max()) <= 1e-9
    assert torch.equal(ours[:, keep], image[:, keep])


def test_rank_correlations_are_scipys():
    spearmanr = pytest.importorskip("scipy.stats").spearmanr
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (5, 7)), rng.standard_normal((5, 7))
    theirs = [spearmanr(*pair).statistic for pair in zip(a, b)]
    assert np.abs(spearman(a, b) - theirs).max() <= 1e-12
