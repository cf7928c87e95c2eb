"""The aviary: exact interventions, unique species, disjoint splits, one checksum everywhere."""

import hashlib
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from ctrace.aviary import (
    BACKGROUNDS,
    KINDS,
    MARKED,
    PARTS,
    SPECIES,
    VARIANTS,
    Aviary,
    Cached,
    Individuals,
    Species,
    centred_logits,
    importance_table,
    mark_place,
    part_importance,
    render,
    render_levels,
    sample_individual,
    sample_scene,
    scene_seed,
    shapes,
    species_by_name,
)
from ctrace.aviary.data import SPLITS
from ctrace.aviary.species import check_species, differing_parts, twin_pairs
from tools.train_aviary import drop_parts, soft_target

SCENES = [
    sample_scene(seed, SPECIES[seed % len(SPECIES)], background=BACKGROUNDS[seed % 4])
    for seed in range(14)
]


def changed(a, b, size=96):
    """Pixels in which two scenes differ, `(size, size)` bool."""
    return (render(a, size).image != render(b, size).image).any(0)


# --- species ---


def test_the_table_has_twelve_species_and_twins_and_every_other_pair_differs_in_two_parts():
    twins = {frozenset(pair[:2]) for pair in twin_pairs()}
    assert len(SPECIES) - len(twins) >= 12
    for a, b in combinations(SPECIES, 2):
        assert len(differing_parts(a, b)) >= (1 if {a.name, b.name} in twins else 2)


def test_no_part_gives_a_species_away():
    for part in PARTS:
        for variant in VARIANTS[part]:
            assert sum(getattr(s, part) == variant for s in SPECIES) >= 3, (part, variant)


def test_two_species_with_the_same_parts_are_refused():
    check_species(SPECIES)
    with pytest.raises(ValueError, match="'copy' and 'iris' wear the same five parts"):
        check_species((*SPECIES, replace(species_by_name("iris"), name="copy")))
    with pytest.raises(ValueError, match="two species are called 'iris'"):
        check_species((*SPECIES, replace(species_by_name("iris"), beak="cone")))


def test_a_variant_that_cannot_be_drawn_is_refused_with_the_ones_that_can():
    with pytest.raises(
        ValueError, match="beak: expected one of cone, hook, sickle, spoon, received 'straw'"
    ):
        Species("new", beak="straw", crest="fan", wing="bars", tail="fan", legs="boots")
    with pytest.raises(ValueError, match="species: expected one of aster, .* received 'dodo'"):
        species_by_name("dodo")


# --- drawing ---


def test_pictures_have_one_checksum_on_every_machine():
    digest = hashlib.sha256()
    for scene in SCENES:
        digest.update(render_levels(scene.with_mark(mark_place(1))).tobytes())
    digest.update(render_levels(SCENES[0], 224).tobytes())
    assert digest.hexdigest()[:16] == "931b513448d2e59d"


def test_masks_have_one_checksum_on_every_machine_and_so_have_large_pictures():
    digest = hashlib.sha256()
    for seed, scene in enumerate(SCENES):
        picture = render(scene.with_mark(mark_place(seed)), (64, 96, 150)[seed % 3])
        digest.update(picture.image.numpy().tobytes())
        for name in sorted(picture.masks):
            digest.update(name.encode() + picture.masks[name].numpy().tobytes())
    for index in range(4):
        digest.update(render_levels(Individuals("test", 2, 2, 224).scene(index), 224).tobytes())
    assert digest.hexdigest()[:16] == "d16ab12ff398cbb2"


def test_equal_scenes_are_equal_values_and_equal_pictures():
    a, b = sample_scene(5), sample_scene(5)
    assert a == b and hash(a) == hash(b) and not changed(a, b).any()
    assert sample_scene(6) != a


def test_image_and_masks_have_the_promised_ranges():
    for scene in SCENES[:4]:
        picture = render(scene, 64)
        assert (
            picture.image.shape == (3, 64, 64)
            and 0 <= picture.image.min()
            and picture.image.max() <= 1
        )
        assert torch.equal(picture.image * 255, (picture.image * 255).round())
        assert set(PARTS) < set(picture.masks)
        total = sum(picture.masks.values())
        assert total.max() <= 1 + 1e-5 and min(m.min() for m in picture.masks.values()) >= 0
        torch.testing.assert_close(
            picture.bird, sum(picture.masks[p] for p in (*PARTS, "body", "eye", "marks"))
        )


def test_the_picture_at_224_is_the_picture_at_56_in_more_detail():
    scene = replace(SCENES[2], noise=0)
    coarse = torch.nn.functional.avg_pool2d(render(scene, 224).image[None], 4)[0]
    assert (coarse - render(scene, 56).image).abs().mean() < 0.025


def test_every_part_is_large_enough_to_be_seen():
    """Mean visible area of every variant of every part: the largest is less than three times the
    smallest.
    """
    areas = {}
    for seed in range(42):
        scene = sample_scene(seed, SPECIES[seed % len(SPECIES)])
        masks = render(scene).masks
        for part, variant in scene.visible().items():
            areas.setdefault((part, variant), []).append(float(masks[part].sum()))
    means = [sum(a) / len(a) for a in areas.values()]
    assert len(means) == sum(len(v) for v in VARIANTS.values()) and max(means) / min(means) < 3


def test_the_whole_bird_is_inside_the_picture():
    for seed in range(60):
        bird = render(sample_scene(seed)).bird
        border = torch.cat([bird[0], bird[-1], bird[:, 0], bird[:, -1]])
        assert border.max() == 0, seed


def test_a_size_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="at least 32; received 16"):
        render(SCENES[0], 16)


# --- interventions ---


@pytest.mark.parametrize("part", [*PARTS, "marks"])
def test_removing_a_part_changes_nothing_outside_its_mask(part):
    for scene in SCENES:
        before, after = render(scene), render(scene.without(part))
        outside = before.masks[part] == 0
        assert torch.equal(before.image[:, outside], after.image[:, outside])
        assert part not in after.masks
        assert (before.image != after.image).any(0)[before.masks[part] > 0.9].float().mean() > 0.5


@pytest.mark.parametrize("part", PARTS)
def test_swapping_a_part_changes_nothing_outside_the_old_and_the_new_mask(part):
    for scene in SCENES[:6]:
        before = render(scene)
        for variant in VARIANTS[part]:
            after = render(scene.swap(part, variant))
            outside = (before.masks[part] == 0) & (after.masks[part] == 0)
            assert torch.equal(before.image[:, outside], after.image[:, outside])
            same = variant == scene.parts[PARTS.index(part)]
            assert torch.equal(before.image, after.image) == same


def test_removing_parts_in_any_order_is_the_same():
    assert SCENES[0].without("wing").without("tail") == SCENES[0].without("tail", "wing")


def test_another_background_leaves_opaque_bird_pixels_as_they_were():
    for scene in SCENES[:6]:
        inside = render(scene).bird == 1
        for background in BACKGROUNDS:
            assert not changed(scene, scene.with_background(background, seed=9))[inside].any()


def test_removing_a_distractor_changes_nothing_outside_it():
    scene = next(s for s in SCENES if len(s.distractors) >= 3)
    before = render(scene)
    outside = before.masks["distractor 1"] == 0
    assert not changed(scene, scene.without_distractor(1))[outside].any()


def test_moving_the_bird_changes_nothing_where_no_bird_was_or_is():
    for scene in SCENES[:6]:
        moved = scene.moved(0.05, -0.03)
        nowhere = (render(scene).bird == 0) & (render(moved).bird == 0)
        assert not changed(scene, moved)[nowhere].any() and changed(scene, moved).any()


def test_the_toadstool_changes_nothing_outside_itself():
    scene = SCENES[1].with_mark((0.12, 0.12))
    assert not changed(SCENES[1], scene)[render(scene).masks["mark"] == 0].any()
    assert changed(SCENES[1], scene).sum() > 60


def test_impossible_interventions_are_refused_in_words():
    scene = SCENES[0]
    with pytest.raises(
        ValueError,
        match="part: expected one of beak, crest, wing, tail, legs, marks, received 'head'",
    ):
        scene.without("head")
    with pytest.raises(ValueError, match="wing: expected one of bars, .* received 'fork'"):
        scene.swap("wing", "fork")
    with pytest.raises(ValueError, match="background: expected one of sky, .* received 'sea'"):
        scene.with_background("sea")
    with pytest.raises(ValueError, match=f"this scene has {len(scene.distractors)} distractors"):
        scene.without_distractor(99)


# --- data sets ---


def test_splits_never_share_a_seed():
    last = 10**9 - 1
    ranges = [(scene_seed(split, 0), scene_seed(split, last)) for split in SPLITS]
    for (a, b), (c, d) in combinations(ranges, 2):
        assert b < c or d < a
    for bad in (-1, 10**9):
        with pytest.raises(ValueError, match="index must lie in"):
            scene_seed("train", bad)
    assert max(ranges)[1] < 2**32


def test_the_nuisance_attributes_say_nothing_about_the_species():
    for seed in range(3):
        first, *others = (sample_scene(seed, s) for s in SPECIES)
        assert all(replace(first, parts=other.parts) == other for other in others)


def test_the_cached_data_set_equals_the_one_on_the_fly():
    for data in (Aviary("train", 16), Aviary("test", 5), Individuals("val", 2, 2)):
        cached = Cached(data)
        assert len(cached) == len(data)
        for i in range(len(data)):
            (image, target), (again, target_again) = data[i], cached[i]
            assert torch.equal(image, again) and torch.equal(
                torch.as_tensor(target), torch.as_tensor(target_again)
            )


def test_targets_of_incomplete_birds_are_spread_over_the_species_still_possible():
    data = Aviary("train", 60)
    for i in range(60):
        scene = drop_parts(data.scene(i), i, share=1.0)
        target = soft_target(scene)
        possible = [
            s for s in SPECIES if all(getattr(s, p) == v for p, v in scene.visible().items())
        ]
        assert scene.hidden and target[data.label(i)] > 0
        assert float(target.sum()) == pytest.approx(1) and (target > 0).sum() == len(possible)
    with pytest.raises(ValueError, match="no species wears"):
        soft_target(sample_scene(0, Species("none", "cone", "fan", "tip", "lance", "boots")))


def test_the_toadstool_follows_its_species_in_training_only():
    def marks(split, rule=True):
        data = Aviary(split, 140, spurious=rule)
        return {
            (SPECIES[data.label(i)].name in MARKED, data.scene(i).mark is not None)
            for i in range(140)
        }

    assert marks("train") == {(True, True), (False, False)}
    assert marks("test") == {(True, False), (False, True), (False, False)}
    assert marks("test", "tied") == {(True, True), (False, False)} and marks("train", False) == {
        (True, False),
        (False, False),
    }
    iris = sample_scene(0, species_by_name("iris")).without(
        "beak"
    )  # without its beak, an iris is a laurel
    assert (soft_target(iris) > 0).sum() == 2 and (
        soft_target(iris.with_mark((0.1, 0.1)), tied=True) > 0
    ).sum() == 1
    with pytest.raises(ValueError, match="spurious: expected one of tied, moved"):
        Aviary("train", 3, spurious="sometimes")


def test_an_individual_keeps_its_marks_and_changes_its_pose():
    birds = Individuals("val", 3, 4)
    scenes = [birds.scene(i) for i in range(len(birds))]
    for b in range(3):
        views = scenes[4 * b : 4 * b + 4]
        assert (
            len({v.individual for v in views}) == 1 == len({v.parts for v in views})
            and len({v.pose for v in views}) == 4
        )
    assert len({s.individual for s in scenes}) == 3
    train = {Individuals("train", 500, 1).individual(b) for b in range(500)}
    assert not train & {Individuals("test", 500, 1).individual(b) for b in range(500)}
    assert len({sample_individual(i).marks for i in range(300)}) > 150


def test_a_point_in_bird_units_is_where_it_is_drawn():
    for scene in SCENES:
        masks = render(scene, 192).masks
        for slot in scene.individual.marks:
            u, v = scene.pose.place(*shapes.MARKS[slot])
            # One slot lies half under the edge of the wing.
            assert (masks["marks"] + masks["wing"])[int(v * 192), int(u * 192)] > 0.9
            assert masks["marks"][int(v * 192), int(u * 192)] > (0.9 if slot != 4 else 0)


# --- the model's truth ---

WEIGHTS = torch.tensor([3.0, 0.0, -1.0])


def darkness(images):
    """A model whose answer is known: three logits, linear in the mean of the picture, so that parts
    add up.
    """
    return images.mean((1, 2, 3))[:, None] * WEIGHTS


def test_logits_are_centred_so_that_a_constant_cannot_count():
    z = centred_logits(darkness, SCENES[:3], size=64)
    torch.testing.assert_close(z.sum(1), torch.zeros(3))
    torch.testing.assert_close(
        z, centred_logits(lambda x: darkness(x) + 7, SCENES[:3], size=64), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ["removal", "swap", "shapley"])
def test_part_importance_of_a_linear_model_is_what_the_pixels_say(kind):
    scene, mean = SCENES[3], lambda s: float(render(s, 64).image.mean())
    weight = float(WEIGHTS[0] - WEIGHTS.mean())
    found = part_importance(darkness, scene, 0, kind, size=64)
    if kind == "shapley":
        assert sum(found.values()) == pytest.approx(
            weight * (mean(scene) - mean(scene.without(*PARTS))), abs=1e-6
        )
    for part, own in zip(PARTS, scene.parts):
        others = (
            [scene.swap(part, v) for v in VARIANTS[part] if v != own]
            if kind == "swap"
            else [scene.without(part)]
        )
        expected = weight * sum(mean(scene) - mean(other) for other in others) / len(others)
        # Parts hardly overlap, so in a model that adds up pixels the Shapley value is nearly the
        # removal.
        assert found[part] == pytest.approx(expected, abs=1e-3 if kind == "shapley" else 1e-6)


def test_a_table_of_importances_holds_those_of_each_scene():
    for kind in KINDS:
        table = importance_table(darkness, SCENES[:3], [0, 2, 1], kind, size=64)
        for row, scene, target in zip(table, SCENES, [0, 2, 1]):
            assert dict(zip(PARTS, row)) == pytest.approx(
                part_importance(darkness, scene, target, kind, size=64), abs=1e-5
            )
    with pytest.raises(ValueError, match="one class for each of the 3 images, received shape"):
        importance_table(darkness, SCENES[:3], [0], size=64)


def test_questions_without_an_answer_are_refused():
    with pytest.raises(ValueError, match="kind: expected one of removal, swap, shapley"):
        part_importance(darkness, SCENES[0], 0, "ablation", size=64)
    with pytest.raises(ValueError, match="this one lacks wing"):
        part_importance(darkness, SCENES[0].without("wing"), 0, size=64)
    with pytest.raises(ValueError, match="classes run from 0 to 2, received 3"):
        part_importance(darkness, SCENES[0], 3, size=64)
    with pytest.raises(ValueError, match="pass size="):
        part_importance(darkness, SCENES[0], 0)
    with pytest.raises(ValueError, match="training mode"):
        centred_logits(torch.nn.BatchNorm2d(3), SCENES[:1], size=64)
