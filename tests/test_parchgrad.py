"""ParchGrad: equal to literal surgery one image at a time, the plain gradient where it must be, and
nothing left behind.
"""

import math
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision

from ctrace.check import fingerprint
from ctrace.look import saliency
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.parchgrad import ATTRIBUTIONS, ParchGrad
from ctrace.look.partition import default_convs, reweigh
from tests import reference_parchgrad as reference
from tests.reference_gradcam import Embedder, Residual
from tests.reference_parchgrad import labelled_images, make_net

WEIGHTS = [
    {},
    {"variance_conservation": False},
    {"exact_variance": True},
    {"gamma": 0.7},
    {"gamma": 3.0, "variance_conservation": False},
    {"gamma": 3.0, "exact_variance": True},
]
SETTINGS = {"grad": {}, "inputgrad": {}, "smoothgrad": {"samples": 4}, "ig": {"steps": 5}}


def collect(net, images, labels, **settings):
    return ChannelStatistics.collect(net, [(images, labels)], progress=False, **settings)


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture(scope="module")
def parch(net):
    return ParchGrad(net, collect(net, *labelled_images(30)), layer_ratio=1.0)


@pytest.fixture(scope="module")
def unseen():
    """Five images the statistics have not seen, more rows than there are classes."""
    return labelled_images(5, seed=9)


@pytest.fixture(scope="module")
def training():
    """What `parch` was made from, by a literal loop: mean activations by place of the layer, and
    the classes.
    """
    images, labels = labelled_images(30)
    return {at: reference.activations(make_net(), at, images) for at in (0, 3)}, labels.tolist()


def gradients(b=3, c=10, h=4, w=5, seed=0):
    """Correlated channels, so that kept and other part covary."""
    generator = torch.Generator().manual_seed(seed)
    own, common = (
        torch.randn(b, k, h, w, generator=generator, dtype=torch.float64) for k in (c, 1)
    )
    return (own + common) * 1e-4, torch.rand(b, c, generator=generator) < 0.4


def sum_variance(g):
    return g.sum(1).flatten(1).var(1)


# --- weighing the two parts


SINGLE_PIXEL = [
    ((1, 1), weights) for weights in WEIGHTS if "exact_variance" not in weights
]  # which has a test of its own there


@pytest.mark.parametrize(
    "size, weights",
    [(size, weights) for size in ((4, 5), (1, 5)) for weights in WEIGHTS] + SINGLE_PIXEL,
)
def test_reweighing_equals_the_formulas_one_image_at_a_time(size, weights):
    g, kept = gradients(h=size[0], w=size[1])
    untouched = g.clone()
    ours = reweigh(g, kept, **weights)
    for i in range(len(g)):
        theirs = reference.surgery(g[i], kept[i].nonzero()[:, 0].tolist(), **weights)
        torch.testing.assert_close(ours[i], theirs, rtol=1e-10, atol=0)
    assert torch.equal(g, untouched) and not torch.allclose(ours, g)


@pytest.mark.parametrize("gamma", [0.5, 4.0, math.inf])
def test_exact_variance_conserves_the_variance_of_the_channel_sum_and_the_published_factor_does_not(
    gamma,
):
    g, kept = gradients()
    exact = reweigh(g, kept, gamma, exact_variance=True)
    torch.testing.assert_close(sum_variance(exact), sum_variance(g), rtol=1e-10, atol=0)
    single = reweigh(g.float(), kept, gamma, exact_variance=True)
    torch.testing.assert_close(sum_variance(single), sum_variance(g.float()), rtol=1e-5, atol=0)
    assert (sum_variance(reweigh(g, kept, gamma)) / sum_variance(g) - 1).abs().max() > 0.05
    pixel, kept = gradients(h=1, w=1)
    kept_sum = reweigh(pixel, kept, gamma, exact_variance=True).sum(1).abs()
    torch.testing.assert_close(kept_sum, pixel.sum(1).abs(), rtol=1e-10, atol=0)


def test_the_published_factor_conserves_the_variance_of_parts_that_do_not_covary():
    g = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    g[0, 0], g[0, 1] = (
        torch.tensor([[1.0, -1.0], [1.0, -1.0]]),
        torch.tensor([[3.0, 3.0], [-3.0, -3.0]]),
    )
    kept = torch.tensor([[True, False]])
    for gamma in (0.5, 2.0, math.inf):
        torch.testing.assert_close(sum_variance(reweigh(g, kept, gamma)), sum_variance(g))
    edited = reweigh(g, kept, 2.0)
    assert abs(edited[:, 0].std() / edited[:, 1].std() - 2.0) < 1e-12, (
        "gamma is the ratio of the two standard deviations"
    )


def test_a_growing_gamma_tends_to_an_infinite_one():
    g, kept = gradients()
    for exact in (False, True):
        limit = reweigh(g, kept, math.inf, exact_variance=exact)
        off = [
            (reweigh(g, kept, gamma, exact_variance=exact) - limit).abs().max() / limit.abs().max()
            for gamma in (10.0, 1e3, 1e6)
        ]
        assert off[0] > off[1] > off[2] and off[0] > 1e-3 and off[2] < 1e-5


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_row_that_keeps_everything_is_returned_bit_by_bit(weights):
    g, kept = gradients()
    kept[1] = True
    assert torch.equal(reweigh(g, kept, **weights)[1], g[1])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_parts_without_variance_give_finite_gradients(weights):
    g, kept = gradients(b=5)
    g[0] *= kept[0, :, None, None]  # the other part is silent
    g[1] *= ~kept[1, :, None, None]  # the kept part is silent
    g[2] = (
        0.1 * torch.arange(10.0)[:, None, None]
    )  # both are constant: their variance would be rounding noise
    g[3] = 0.0
    g[4, kept[4]] = 1e-4  # the kept part is constant but for the last digit of one pixel
    g[4, kept[4], 0, 0] *= 1 + 4e-16
    edited = reweigh(g, kept, **weights)
    assert edited.isfinite().all() and not edited[3].any()
    for i in (2, 4):
        assert edited[i].abs().max() <= 10 * g[i].abs().max()


def test_half_precision_is_weighed_in_float32():
    g, kept = gradients()
    for dtype in (torch.float16, torch.bfloat16):
        half = g.to(dtype)  # the variance of these is below the smallest float16
        edited = reweigh(half, kept)
        assert edited.dtype == dtype
        torch.testing.assert_close(
            edited.double(), reweigh(half.double(), kept), rtol=1e-2, atol=1e-7
        )


# --- the whole way back


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("choice", [{"quantile": 0.35}, {"alpha": 0.3}])
def test_class_partition_equals_literal_surgery_with_scipys_p_values(
    net, parch, unseen, training, choice, weights
):
    images, labels = unseen
    rows, known = training
    edited = parch.attribute("grad", images, labels, **choice, **weights)
    for i, k in enumerate(labels.tolist()):
        p = {
            at: [reference.class_pvalue(rows[at], known, k, c) for c in range(len(rows[at][0]))]
            for at in rows
        }
        kept = {at: reference.keep(p[at], **choice) for at in rows}
        literal = reference.attribute(net, images[i], k, kept, **weights)
        torch.testing.assert_close(
            edited[i], literal, rtol=0, atol=1e-9 * literal.abs().max().item()
        )
    assert not torch.allclose(edited, saliency.gradient(net, images, labels), rtol=0.1)


@pytest.mark.parametrize("choice", [{"quantile": 0.35}, {"alpha": 0.6}])
def test_instance_partition_equals_literal_surgery_with_normal_tails(
    net, parch, unseen, training, choice
):
    images, labels = unseen
    rows, _ = training
    with parch.partition("ins", **choice) as seen:
        edited = saliency.gradient(net, images, labels)
    for i, k in enumerate(labels.tolist()):
        now = {at: reference.activations(net, at, images[i : i + 1])[0] for at in rows}
        p = {
            at: [reference.instance_pvalue(rows[at], v, c) for c, v in enumerate(now[at])]
            for at in rows
        }
        kept = {at: reference.keep(p[at], **choice) for at in rows}
        literal = reference.attribute(net, images[i], k, kept)
        torch.testing.assert_close(
            edited[i], literal, rtol=0, atol=1e-9 * literal.abs().max().item()
        )
        assert seen.kept["3"][i].nonzero()[:, 0].tolist() == sorted(kept[3])
    assert len({tuple(row.tolist()) for row in seen.kept["3"]}) > 1, (
        "images must differ in what they excite"
    )


@pytest.mark.parametrize("attribution", SETTINGS)
@pytest.mark.parametrize("method", ["cls", "ins"])
def test_a_batch_equals_one_by_one_in_every_attribution(parch, unseen, attribution, method):
    images, labels = (x[:4] for x in unseen)  # four rows: as many as smoothgrad has samples here
    settings = {"settings": SETTINGS[attribution], "method": method, "quantile": 0.3}
    together = parch.attribute(attribution, images, labels, **settings)
    for i in range(4):
        alone = parch.attribute(attribution, images[i], labels[i : i + 1], **settings)[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-9 * alone.abs().max().item())


@pytest.mark.parametrize(
    "attribution, weights",
    [("grad", weights) for weights in WEIGHTS] + [(name, {}) for name in SETTINGS],
)
def test_keeping_all_channels_is_the_plain_attribution(parch, unseen, attribution, weights):
    images, labels = unseen
    settings = {"steps": 64} if attribution == "ig" else SETTINGS[attribution]
    plain = ATTRIBUTIONS[attribution](parch.model, images, labels, **settings)
    for shuffle in (None, 0):
        through = parch.attribute(
            attribution, images, labels, settings, quantile=1.0, shuffle=shuffle, **weights
        )
        assert torch.equal(plain, through)


def test_in_a_sequential_net_conservation_multiplies_the_map_by_one_constant(parch, unseen):
    images, labels = unseen
    plain, conserved = (
        parch.attribute("grad", images, labels, quantile=0.3, variance_conservation=on)
        for on in (False, True)
    )
    ratio = conserved / plain
    spread = ratio.flatten(1).std(1) / ratio.flatten(1).mean(1)
    assert spread.max() < 1e-9 and (ratio.flatten(1).mean(1) > 1.1).all()


def test_in_a_residual_net_conservation_changes_the_map():
    model = Residual().double()
    images, labels = labelled_images(30, 5)
    parch = ParchGrad(model, collect(model, images, labels), layers="conv")
    plain, conserved = (
        parch.attribute("grad", images[:3], labels[:3], quantile=0.3, variance_conservation=on)
        for on in (False, True)
    )
    ratio = conserved / plain
    assert (ratio.flatten(1).std(1) / ratio.flatten(1).mean(1).abs()).min() > 1e-3


def test_only_the_sum_of_an_edited_gradient_is_not_expected_to_be_complete(parch, net, unseen):
    other, bent = make_net(seed=3), lambda out: out[:, 0].pow(4)
    integrate = partial(saliency.integrated_gradients, image=unseen[0], target=bent, steps=1)
    with parch.partition("ins", quantile=0.3), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        integrate(net)
        assert not heard
        integrate(other)
        warnings.warn("image 7: integrated gradients sum to what a reader says", stacklevel=1)
    assert [str(w.message)[:8] for w in heard][-1] == "image 7:" and len(heard) > 1
    with pytest.warns(UserWarning, match="integrated gradients sum to"):
        integrate(net)


def test_the_class_of_a_row_is_the_logit_it_is_asked_about_or_the_one_named(parch, net, unseen):
    images, _ = unseen
    with parch.partition("cls", quantile=0.3) as seen:
        own = saliency.gradient(net, images, [2, 0, 3, 1, 2])
        assert seen.classes.tolist() == [2, 0, 3, 1, 2]
    with parch.partition("cls", quantile=0.3, classes=3) as seen:
        one = saliency.gradient(net, images, [2, 0, 3, 1, 2])
        assert seen.classes.tolist() == [3] * 5
    assert torch.equal(own[2], one[2]) and not torch.allclose(own[0], one[0])
    chosen = parch.kept_for([2, 3], quantile=0.3)["3"]
    assert (
        torch.equal(seen.kept["3"][0], chosen[1])
        and not torch.equal(chosen[0], chosen[1])
        and chosen.sum(1).tolist() == [2, 2]
    )


def test_a_score_that_is_no_logit_needs_a_named_class(parch, net, unseen):
    def probability(out):
        return out.softmax(1)[:, 1]

    with pytest.raises(ValueError, match="class of a row cannot be told.*classes=3"):
        parch.attribute("grad", unseen[0], probability, quantile=0.3)
    named = parch.attribute("grad", unseen[0], probability, quantile=0.3, classes=1)
    assert named.flatten(1).any(1).all()


def test_an_embedding_model_is_partitioned_for_a_named_class():
    model = Embedder(True)
    images, labels = labelled_images(12, size=16)
    parch = ParchGrad(model, collect(model, images.float(), labels, num_classes=4), layer_ratio=1.0)
    with parch.partition("cls", quantile=0.3, classes=2):
        edited = saliency.gradient(
            model, images[:2], target_embedding=model(images[2:4].float()).detach()
        )
    assert edited.flatten(1).any(1).all()


def test_quantile_keeps_exactly_that_many_channels_and_wins_over_alpha(parch, net, unseen):
    for quantile, kept in ((0.01, [1, 1]), (0.3, [1, 2]), (0.5, [3, 4]), (1.0, [6, 8])):
        with parch.partition("ins", quantile=quantile, alpha=0.0) as seen:
            saliency.gradient(net, *unseen)
        assert [seen.kept[layer].sum(1).unique().tolist() for layer in ("0", "3")] == [
            [n] for n in kept
        ]


def test_where_no_channel_meets_alpha_all_are_kept_and_it_is_said(parch, net, unseen):
    with pytest.warns(UserWarning, match="no channel was kept for some image at 0, 3, so all were"):
        edited = parch.attribute("grad", *unseen, alpha=0.0)
    assert torch.equal(edited, saliency.gradient(net, *unseen))


def test_the_random_control_has_the_same_size_and_other_channels(parch, net, unseen):
    kept = []
    for shuffle in (None, 0, 0, 1):
        with parch.partition("cls", alpha=0.4, shuffle=shuffle) as seen:
            saliency.gradient(net, *unseen)
        kept.append(torch.cat(list(seen.kept.values()), 1))
    chosen, first, again, other = kept
    assert torch.equal(first, again) and torch.equal(chosen.sum(1), first.sum(1))
    assert not torch.equal(chosen, first) and not torch.equal(first, other)


def test_the_statistics_choose_the_channel_that_was_planted_for_a_class(net):
    images, labels = labelled_images(40)
    images = torch.zeros_like(images) + 0.1 * images
    images[labels == 2, 1] += 3.0
    planted = make_net()
    with torch.no_grad():
        planted[0].weight[4] = 0.0
        planted[0].weight[:, 1], planted[0].bias[4] = 0.0, -2.0
        planted[0].weight[4, 1] = 0.2  # the one channel that sees green
    parch = ParchGrad(planted, collect(planted, images, labels), layers="0")
    assert parch.kept_for(2, quantile=0.2)["0"][0].nonzero()[:, 0].tolist() == [4]


# --- models

MODELS = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=5, zero_init_last=False),
    "resnet18 of torchvision": lambda: torchvision.models.resnet18(num_classes=5),
    "vgg16_bn": lambda: timm.create_model("vgg16_bn", num_classes=5, mlp_ratio=0.01),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=5),
}


@pytest.mark.parametrize("name", MODELS)
def test_published_families_are_partitioned_at_their_default_layers_and_left_as_found(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    images, labels = labelled_images(8, 2, size=64)
    images = images.float()
    before = fingerprint(model)
    parch = ParchGrad(model, collect(model, images, labels, layers=default_convs(model)))
    with parch.partition("cls", quantile=0.1) as seen:
        edited = saliency.gradient(model, images[:3], labels[:3])
    assert list(seen.kept)[::-1] == parch.layers == default_convs(model)
    assert fingerprint(model) == before
    plain = saliency.gradient(model, images[:3], labels[:3])
    assert (
        edited.isfinite().all()
        and edited.flatten(1).any(1).all()
        and not torch.allclose(edited, plain, rtol=0.1)
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_exactly_as_found_after_an_exception(parch, net, unseen, error):
    before = fingerprint(net)
    with pytest.raises(error), parch.partition("cls", quantile=0.3):
        saliency.gradient(net, *unseen)
        raise error
    assert fingerprint(net) == before


# --- bad input


def use(parch, images=None, target=0, **partition):
    return parch.attribute(
        "grad", labelled_images(2)[0] if images is None else images, target, **partition
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda p: use(p, alpha=1.5),
            "alpha, a p-value: .* at least 0 and at most 1, received 1.5",
        ),
        (
            lambda p: use(p, alpha=-0.1),
            "alpha, a p-value: .* at least 0 and at most 1, received -0.1",
        ),
        (lambda p: use(p, quantile=0.0), "quantile: .* above 0 and at most 1, received 0"),
        (lambda p: use(p, quantile=1.1), "quantile: .* above 0 and at most 1, received 1.1"),
        (lambda p: use(p), "pass quantile, the share to keep, or alpha"),
        (lambda p: use(p, quantile=0.1, gamma=0.0), "gamma .*: expected a finite number above 0"),
        (
            lambda p: use(p, quantile=0.1, gamma=math.nan),
            "gamma .*: expected a finite number above 0",
        ),
        (
            lambda p: use(p, quantile=0.1, method="both"),
            "expected one of cls, ins, received 'both'",
        ),
        (lambda p: use(p, quantile=0.1, classes=4), "classes run from 0 to 3, received 4"),
        (
            lambda p: p.attribute("lime", labelled_images(2)[0], 0, quantile=0.1),
            "expected one of grad, inputgrad, smoothgrad, ig",
        ),
        (lambda p: ParchGrad(p.model, p.statistics), "no default layers are known for Sequential"),
        (
            lambda p: ParchGrad(p.model, p.statistics, "0", 0.5),
            "pass layers or layer_ratio, not both",
        ),
        (lambda p: ParchGrad(torch.nn.Linear(2, 2), p.statistics), "has no Conv2d"),
        (
            lambda p: ParchGrad(make_net(seed=1), p.statistics, layer_ratio=1.0),
            "statistics of another model: the weights",
        ),
        (
            lambda p: ParchGrad(Residual(), p.statistics, layer_ratio=1.0),
            "layer of these statistics: expected one of 0, 3, received 'stem'",
        ),
    ],
)
def test_a_wrong_call_is_said(parch, call, words):
    with pytest.raises(ValueError, match=words):
        call(parch)


def test_a_class_that_cannot_be_tested_is_refused_and_the_others_served(net):
    images, labels = labelled_images(5)  # classes 1 to 3 have one image each
    parch = ParchGrad(net, collect(net, images, labels), layer_ratio=1.0)
    assert use(parch, quantile=0.3, target=0).any()
    with pytest.raises(ValueError, match=r"class 2 \(1 of 5 images\): a test needs two"):
        use(parch, quantile=0.3, target=[0, 2])
    few = collect(net, images[:3], torch.tensor([0, 0, 3]))
    with pytest.raises(ValueError, match=r"class 1 \(0 of \d+ images\)"):
        use(ParchGrad(net, few, layer_ratio=1.0), quantile=0.3, classes=1)
    single = ParchGrad(net, collect(net, images[:1], labels[:1]), layer_ratio=1.0)
    with pytest.raises(ValueError, match="hold one image"):
        use(single, method="ins", quantile=0.3)


def test_gradients_switched_off_are_said(parch):
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are off"):
        use(parch, quantile=0.3)
