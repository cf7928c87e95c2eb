"""Species of the toy aviary: which variant of which part a bird wears, and what follows from the
table alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

# Five diagnostic parts. Order matters: tuples of variants follow it everywhere.
VARIANTS: dict[str, tuple[str, ...]] = {
    "beak": ("cone", "hook", "sickle", "spoon"),
    "crest": ("fan", "spike", "baubles"),
    "wing": ("bars", "spots", "tip", "eye"),
    "tail": ("fan", "fork", "lance", "racket"),
    "legs": ("stilts", "webbed", "boots"),
}
PARTS: tuple[str, ...] = tuple(VARIANTS)


def check_variant(part: str, variant: str) -> None:
    """Raises ValueError unless `variant` is one of the shapes the renderer can draw for `part`."""
    if part not in VARIANTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}; received {part!r}")
    if variant not in VARIANTS[part]:
        raise ValueError(f"{part} must be one of {', '.join(VARIANTS[part])}; received {variant!r}")


@dataclass(frozen=True)
class Species:
    """A name and one variant for each of the five diagnostic parts; colours, pose and proportions
    are free.

    >>> Species("dodo", beak="hook", crest="baubles", wing="bars", tail="lance", legs="boots").variants
    ('hook', 'baubles', 'bars', 'lance', 'boots')

    Raises:
        ValueError: a variant that no part has; the message lists the ones there are.
    """

    name: str
    beak: str
    crest: str
    wing: str
    tail: str
    legs: str

    def __post_init__(self) -> None:
        for part, variant in zip(PARTS, self.variants):
            check_variant(part, variant)

    @property
    def variants(self) -> tuple[str, ...]:
        """The five variants in the order of `PARTS`."""
        return tuple(getattr(self, part) for part in PARTS)


# Chosen so that every variant is worn by at least three species (no part gives a species away) and
# the first twelve differ pairwise in three parts or more. Laurel and myrtle are twins of iris and
# hazel: one part differs.
SPECIES: tuple[Species, ...] = (
    Species("aster", "hook", "baubles", "tip", "racket", "boots"),
    Species("briar", "spoon", "fan", "eye", "racket", "boots"),
    Species("cedar", "cone", "fan", "spots", "fork", "webbed"),
    Species("dahlia", "spoon", "fan", "bars", "lance", "stilts"),
    Species("elder", "sickle", "baubles", "bars", "fork", "webbed"),
    Species("fern", "sickle", "fan", "tip", "lance", "webbed"),
    Species("gorse", "cone", "fan", "bars", "fan", "boots"),
    Species("hazel", "hook", "spike", "spots", "fork", "boots"),
    Species("iris", "hook", "spike", "eye", "lance", "stilts"),
    Species("juniper", "spoon", "baubles", "spots", "fan", "stilts"),
    Species("kelp", "cone", "spike", "tip", "fan", "webbed"),
    Species("linden", "cone", "baubles", "bars", "racket", "stilts"),
    Species("laurel", "sickle", "spike", "eye", "lance", "stilts"),
    Species("myrtle", "hook", "spike", "eye", "fork", "boots"),
)


def species_by_name(name: str, table: Iterable[Species] = SPECIES) -> Species:
    """The species called `name`.

    >>> species_by_name("iris").beak
    'hook'
    """
    table = tuple(table)
    for species in table:
        if species.name == name:
            return species
    raise ValueError(
        f"no species is called {name!r}; the table has {', '.join(s.name for s in table)}"
    )


def differing_parts(a: Species, b: Species) -> tuple[str, ...]:
    """The parts in which two species differ.

    >>> differing_parts(species_by_name("iris"), species_by_name("laurel"))
    ('beak',)
    """
    return tuple(part for part in PARTS if getattr(a, part) != getattr(b, part))


def twin_pairs(table: Iterable[Species] = SPECIES) -> list[tuple[str, str, str]]:
    """Pairs of species that differ in exactly one part, as `(name, name, part)`: only that part can
    tell them apart.

    >>> twin_pairs()
    [('hazel', 'myrtle', 'wing'), ('iris', 'laurel', 'beak')]
    """
    found = [
        (a, b, differing_parts(a, b))
        for a, b in combinations(sorted(table, key=lambda s: s.name), 2)
    ]
    return [(a.name, b.name, parts[0]) for a, b, parts in found if len(parts) == 1]


def check_species(table: Iterable[Species]) -> None:
    """Raises ValueError when two species share a name or all five variants, so a label would have
    two meanings.
    """
    names: set[str] = set()
    seen: dict[tuple[str, ...], str] = {}
    for species in table:
        if species.name in names:
            raise ValueError(f"two species are called {species.name!r}; rename one of them")
        if species.variants in seen:
            raise ValueError(
                f"{species.name!r} and {seen[species.variants]!r} wear the same five parts; change one part"
            )
        names.add(species.name)
        seen[species.variants] = species.name


def consistent_species(
    visible: dict[str, str], table: Iterable[Species] = SPECIES
) -> tuple[Species, ...]:
    """The species that agree with every visible part (a mapping from part to variant).

    >>> [s.name for s in consistent_species({"wing": "eye", "tail": "lance"})]
    ['iris', 'laurel']
    """
    return tuple(
        s for s in table if all(getattr(s, part) == variant for part, variant in visible.items())
    )


def sufficient_parts(species: Species, table: Iterable[Species] = SPECIES) -> list[tuple[str, ...]]:
    """The minimal sets of parts that leave no other species possible, smallest first.

    >>> sufficient_parts(species_by_name("briar"))[0]
    ('beak', 'wing')
    """
    table, minimal = tuple(table), []
    for size in range(1, len(PARTS) + 1):
        for parts in combinations(PARTS, size):
            if any(set(small) <= set(parts) for small in minimal):
                continue
            if consistent_species({p: getattr(species, p) for p in parts}, table) == (species,):
                minimal.append(parts)
    return minimal


check_species(SPECIES)
