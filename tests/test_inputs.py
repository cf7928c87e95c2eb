"""What goes in: images and models that can be explained, and words for those that cannot."""

import pytest
import torch
from torch import nn

from ctrace.check import check_ready, prepare_images


@pytest.mark.parametrize(
    "module, words",
    [
        (nn.BatchNorm2d(3), "BatchNorm '0' is in training mode.*model.eval"),
        (nn.BatchNorm2d(3, track_running_stats=False).eval(), "keeps no running statistics"),
        (nn.Dropout(0.1), "dropout '0' is active"),
    ],
)
def test_a_model_whose_answer_depends_on_its_batch_or_on_chance_is_refused(module, words):
    model = nn.Sequential(module)
    with pytest.raises(ValueError, match=words):
        check_ready(model)
    check_ready(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.1)).eval())


def test_images_are_batched_in_the_precision_of_the_model_and_never_shared():
    model = nn.Conv2d(3, 1, 1).double()
    image = torch.rand(3, 4, 5).double()
    batch = prepare_images(model, image)
    assert (
        batch.shape == (1, 3, 4, 5)
        and batch.data_ptr() != image.data_ptr()
        and not batch.requires_grad
    )
    assert prepare_images(model, image.float()).dtype == torch.float64


@pytest.mark.parametrize(
    "image, words",
    [
        (torch.rand(3, 4, 5).numpy(), "received ndarray"),
        (torch.rand(4, 5), "received \\(4, 5\\)"),
        (torch.rand(0, 3, 4, 5), "received \\(0, 3, 4, 5\\)"),
        (torch.rand(4, 5, 3), "channels last"),
        (torch.ones(3, 4, 5, dtype=torch.uint8), "Divide 0..255"),
        (torch.full((3, 4, 5), torch.nan), "NaN"),
    ],
)
def test_a_wrong_image_is_said(image, words):
    with pytest.raises(ValueError, match=words):
        prepare_images(nn.Conv2d(3, 1, 1), image)


def test_an_image_or_model_made_under_inference_mode_is_said():
    with torch.inference_mode():
        image, model = torch.rand(3, 4, 5), nn.Conv2d(3, 1, 1)
    for m, x in ((nn.Conv2d(3, 1, 1), image), (model, torch.rand(3, 4, 5))):
        with pytest.raises(RuntimeError, match="made under torch.inference_mode"):
            prepare_images(m, x)
