"""The script behind the statistics of photographs: whose half is scored, who is held out, and that
the committed files are its own.
"""

import csv
import json

import pytest
import torch
from torch import nn

from benchmarks import parchgrad_photos as script
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.parchgrad import ParchGrad

RED, BLUE = (torch.eye(3)[i][:, None, None].expand(3, 32, 32)[None] for i in (0, 2))


def of_two_colours() -> nn.Module:
    """Channel 0 fires where it is red, channel 1 where it is blue; class 0 wants red above all."""
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    ).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1]])[..., None, None])
        model[0].bias.fill_(-0.5)
        model[4].weight.copy_(torch.tensor([[1.0, 0.5], [0.5, 1]]))
    return model


@pytest.mark.parametrize("left", [True, False])
def test_the_share_is_that_of_the_half_of_the_photograph_asked_for(left):
    model = of_two_colours()
    images, group = torch.cat([RED, RED, BLUE, BLUE]), torch.tensor([0, 0, 1, 1])
    batches = [(images, group)]
    statistics = ChannelStatistics.collect(model, batches, num_classes=2, progress=False)
    parch = ParchGrad(model, statistics, layers="0")
    row = script.explain(model, parch, (RED, BLUE), left, 0, (0, 1))
    assert row["gradient plain"] == pytest.approx(2 / 3)
    assert [row["gradient class"], row["input class"]] == pytest.approx([1, 1])
    assert row["gradient other"] == row["input other"] == 0
    assert {"morf class", "lerf plain"} < set(row) and "morf other" not in row


def test_photographs_of_each_group_are_dealt_in_turns():
    assert script.dealt(torch.tensor([0, 3, 0, 3, 3, 0])).tolist() == [0, 0, 1, 1, 0, 0]


def test_a_photograph_is_explained_by_the_other_half(monkeypatch):
    seen = []
    monkeypatch.setattr(script, "ParchGrad", lambda model, statistics: statistics)
    monkeypatch.setattr(script, "collect", lambda model, x, group: set(x[:, 0].tolist()))
    monkeypatch.setattr(
        script, "explain", lambda model, known, photos, *rest: seen.append((photos, known)) or {}
    )
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    target = torch.tensor([script.GROUPS["dogs"][0]] * 3 + [script.GROUPS["birds"][0]] * 3)
    x = torch.arange(6.0)[:, None]
    model = lambda batch: nn.functional.one_hot(target[batch[:, 0].long()], 1000).float()
    assert len(list(script.rows(model, x, group, target))) == len(seen) == 6
    for photos, known in seen:
        assert known and all(float(photo) not in known for photo in photos)


def test_ranges_are_read_with_both_ends():
    assert script.numbers("7-9 12") == [7, 8, 9, 12]


def test_the_committed_files_are_of_the_groups_in_the_script():
    about = json.loads((script.DATA / "squeezenet.json").read_text())
    lines = list(csv.DictReader((script.DATA / "squeezenet.csv").read_text().splitlines()))
    assert about["classes"] == script.GROUPS and len(lines) > 90
    for line in lines:
        group = list(script.GROUPS.values())[int(line["group"])]
        assert int(line["photo"]) in group and int(line["beside"]) not in group
        shares = [float(v) for k, v in line.items() if k.startswith(("gradient", "input"))]
        assert len(shares) == 10 and all(0 <= share <= 1 for share in shares)
