"""Embeddings: one row per image in the order of the data, computed once, and never taken for those
of something else.
"""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ctrace.carrot.data import aviary_splits
from ctrace.carrot.embeddings import cache_key, embed, weights_identity


@pytest.fixture(scope="module")
def pictures():
    return aviary_splits(train=9, test=3, size=32)


class Counting:
    """Embeds by the mean colour and counts the images it saw."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return images.mean((2, 3))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def test_rows_follow_the_data_whatever_the_batch(pictures):
    data, whole = pictures["train"], Counting()
    expected = torch.stack([image.mean((1, 2)) for image, _ in (data[i] for i in range(9))])
    for batch in (1, 4, 64):
        made = embed(whole, data, batch=batch, progress=False)
        torch.testing.assert_close(made.G, expected)
        assert made.labels.tolist() == data.labels.tolist()
    made = embed(whole, [(torch.rand(2, 3, 4, 4), [3, 1])] * 2, progress=False)
    assert made.labels.tolist() == [3, 1, 3, 1] and whole.seen == 31


def test_the_second_time_nothing_is_computed_and_the_values_are_the_same(pictures, tmp_path):
    key = cache_key(net(), {"t": 1.0}, pictures["train"])
    first, again = Counting(), Counting()
    made = embed(first, pictures["train"], tmp_path / "new", key, progress=False)
    read = embed(again, pictures["train"], tmp_path / "new", key, progress=False)
    assert (first.seen, again.seen) == (9, 0)
    assert torch.equal(made.G, read.G) and torch.equal(made.labels, read.labels)


def test_other_weights_settings_or_images_are_computed_anew(pictures, tmp_path):
    train, test = pictures["train"], pictures["test"]
    moved = net()
    with torch.no_grad():
        moved.bias[0] += 1e-6
    variants = [
        (net(), {"t": 1.0}, train),
        (net(1), {"t": 1.0}, train),
        (moved, {"t": 1.0}, train),
        (net(), {"t": 2.0}, train),
        (net(), {"t": 1.0}, test),
    ]
    for model, settings, data in variants:
        counting = Counting()
        embed(counting, data, tmp_path, cache_key(model, settings, data), progress=False)
        assert counting.seen == len(data)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(variants)


def test_weights_are_told_apart_by_value_name_and_architecture():
    assert weights_identity(net()) == weights_identity(net())
    assert weights_identity(nn.Sequential(net())) != weights_identity(net())
    layer = net()
    assert weights_identity(nn.Sequential(layer, nn.ReLU())) != weights_identity(
        nn.Sequential(layer, nn.GELU())
    )


def damaged(path):
    """Another value, with a header that is still right."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm, words",
    [
        (damaged, "do not match their checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged or no file of embeddings"),
        (lambda path: path.write_text("hello"), "damaged or no file of embeddings"),
        (
            lambda path: save_file({"weight": torch.ones(2)}, str(path)),
            "damaged or no file of embeddings",
        ),
        (
            lambda path: save_file({"G": torch.ones(9, 3), "labels": torch.ones(9)}, str(path)),
            "something else: format, weights, settings, data differ",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_an_error_that_says_so(pictures, tmp_path, harm, words):
    key = cache_key(net(), {}, pictures["train"])
    embed(Counting(), pictures["train"], tmp_path, key, progress=False)
    harm(next(tmp_path.glob("*.safetensors")))
    with pytest.raises(ValueError, match=words):
        embed(Counting(), pictures["train"], tmp_path, key, progress=False)


def test_a_file_under_the_name_of_another_is_refused(pictures, tmp_path):
    ours, theirs = (cache_key(net(), {}, pictures[name]) for name in ("train", "test"))
    embed(Counting(), pictures["test"], tmp_path, theirs, progress=False)
    other = next(tmp_path.glob("*.safetensors"))
    embed(Counting(), pictures["train"], tmp_path, ours, progress=False)
    own = next(path for path in tmp_path.glob("*.safetensors") if path != other)
    own.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match="something else: data differ"):
        embed(Counting(), pictures["train"], tmp_path, ours, progress=False)


def test_an_interrupted_run_leaves_no_file(pictures, tmp_path):
    def stops(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(
            stops,
            pictures["train"],
            tmp_path,
            cache_key(net(), {}, pictures["train"]),
            progress=False,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p: embed(Counting(), [], progress=False), "no batch came out of it"),
        (
            lambda p: embed(Counting(), [torch.rand(2, 3, 4, 4)], progress=False),
            "received a Tensor",
        ),
        (
            lambda p: embed(Counting(), [(torch.rand(2, 3, 4, 4), [1])], progress=False),
            "of equal length",
        ),
        (
            lambda p: embed(lambda x: x.mean((2, 3)) / 0, p["train"], progress=False),
            "9 of 9 embeddings are not finite",
        ),
        (
            lambda p: embed(Counting(), p["train"], cache="somewhere", progress=False),
            "a key is needed",
        ),
        (lambda p: cache_key(net(), {}, [1, 2]), "a list does not say which images it holds"),
    ],
)
def test_what_cannot_be_embedded_or_kept_is_refused_in_words(pictures, call, words):
    with pytest.raises(ValueError, match=words):
        call(pictures)


def test_the_bar_is_drawn_only_when_asked_for(pictures, capsys):
    embed(Counting(), pictures["train"], progress=False)
    assert capsys.readouterr().err == ""
    embed(Counting(), pictures["train"])
    assert "embedding" in capsys.readouterr().err
