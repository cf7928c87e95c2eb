"""Regions are means over their patches, and every patch has exactly one."""

import pytest
import torch

from ctrace.carrot.graph import RegionSet
from ctrace.world.tokens import PatchOutput, patch_centers


def patches(grid=(4, 6), b=2, c=5, seed=0):
    H = torch.randn(b, grid[0] * grid[1], c, generator=torch.Generator().manual_seed(seed))
    return PatchOutput(H, patch_centers(grid).float(), grid, (16, 16))


def test_patches_as_regions_are_the_patches():
    out = patches()
    regions = RegionSet.from_patches(out)
    assert torch.equal(regions.H, out.H) and torch.equal(regions.P, out.P.expand(2, -1, -1))
    assert torch.equal(regions.members, torch.arange(24).expand(2, 24)) and regions.m == 24


def test_pooling_two_by_two_by_hand():
    out = patches((2, 4), b=1)
    regions = RegionSet.pooled(out, 2)
    torch.testing.assert_close(
        regions.H[0], torch.stack([out.H[0, [0, 1, 4, 5]].mean(0), out.H[0, [2, 3, 6, 7]].mean(0)])
    )
    torch.testing.assert_close(regions.P[0], torch.tensor([[-0.5, 0], [0.5, 0]]))
    assert regions.members.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pooled_regions_are_means_of_blocks_also_at_ragged_edges(size):
    out = patches((4, 7))
    regions = RegionSet.pooled(out, size)
    maps = out.H.unflatten(1, (4, 7)).permute(0, 3, 1, 2)
    blocks = torch.nn.functional.avg_pool2d(maps, size, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(regions.H, blocks.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    "make",
    [
        RegionSet.from_patches,
        lambda out: RegionSet.pooled(out, 3),
        lambda out: RegionSet.segmented(out, 3),
    ],
)
def test_regions_weighted_by_their_size_keep_the_mean_of_the_tokens(make):
    out = patches()
    regions = make(out)
    size = torch.stack([members.bincount(minlength=regions.m) for members in regions.members])
    assert int(size.min()) >= 1 and size.sum(1).tolist() == [24, 24]
    torch.testing.assert_close((size[..., None] * regions.H).sum(1) / 24, out.H.mean(1))
    torch.testing.assert_close(
        (size[..., None] * regions.P).sum(1) / 24, out.P.mean(0).expand(2, 2), atol=1e-6, rtol=1e-5
    )


def test_segments_find_planted_groups():
    out = patches((4, 6), b=1)
    planted = (torch.arange(24) % 6) // 2
    grouped = PatchOutput(
        torch.eye(3).repeat_interleave(1, 0)[planted][None] * 5 + 0.01 * out.H[..., :3],
        out.P,
        out.grid_hw,
        (16, 16),
    )
    members = RegionSet.segmented(grouped, 3).members[0]
    assert (
        all(len(members[planted == group].unique()) == 1 for group in range(3))
        and len(members.unique()) == 3
    )


def test_values_are_laid_back_on_the_grid():
    regions = RegionSet.pooled(patches((2, 4), b=1), 2)
    assert regions.on_grid(torch.tensor([[7.0, 9]])).tolist() == [[[7, 7, 9, 9], [7, 7, 9, 9]]]
    assert regions.on_grid(torch.ones(1, 2, 3)).shape == (1, 2, 4, 3)
    with pytest.raises(ValueError, match="one per region"):
        regions.on_grid(torch.ones(1, 3))


def test_an_empty_region_is_refused_in_words():
    with pytest.raises(ArithmeticError, match="region 2 of image 0 has no patch"):
        RegionSet.grouped(patches((1, 4), b=1), torch.tensor([[0, 0, 1, 1]]), 3)


def test_shapes_that_contradict_each_other_are_refused():
    out = patches()
    with pytest.raises(ValueError, match=r"expected P \(2, 24, 2\) and members \(2, 24\)"):
        RegionSet(out.H, out.P, torch.arange(24)[None], out.grid_hw)
    with pytest.raises(ValueError, match="size: expected a whole number at least 1 and at most 6"):
        RegionSet.pooled(out, 7)
