"""Species of the toy aviary: which variant of which part a bird wears."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from ctrace.check import one_of

# Five diagnostic parts. Order matters: tuples of variants follow it everywhere.
VARIANTS: dict[str, tuple[str, ...]] = {
    "beak": ("cone", "hook", "sickle", "spoon"),
    "crest": ("fan", "spike", "baubles"),
    "wing": ("bars", "spots", "tip", "eye"),
    "tail": ("fan", "fork", "lance", "racket"),
    "legs": ("stilts", "webbed", "boots"),
}
PARTS: tuple[str, ...] = tuple(VARIANTS)


@dataclass(frozen=True)
class Species:
    """A name and one variant for each of the five diagnostic parts; colours, pose and proportions
    are free.

    >>> Species("dodo", "hook", "baubles", "bars", "lance", "boots").variants
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
            one_of(part, variant, VARIANTS[part])

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


def species_by_name(name: str) -> Species:
    """The species called `name`.

    >>> species_by_name("iris").beak
    'hook'
    """
    table = {species.name: species for species in SPECIES}
    return table[one_of("species", name, table)]


def differing_parts(a: Species, b: Species) -> tuple[str, ...]:
    """The parts in which two species differ.

    >>> differing_parts(species_by_name("iris"), species_by_name("laurel"))
    ('beak',)
    """
    return tuple(part for part in PARTS if getattr(a, part) != getattr(b, part))


def twin_pairs() -> list[tuple[str, str, str]]:
    """Pairs of species that differ in exactly one part, as `(name, name, part)`: only that part can
    tell them apart.

    >>> twin_pairs()
    [('hazel', 'myrtle', 'wing'), ('iris', 'laurel', 'beak')]
    """
    pairs = combinations(sorted(SPECIES, key=lambda species: species.name), 2)
    differing = [(a.name, b.name, differing_parts(a, b)) for a, b in pairs]
    return [(a, b, parts[0]) for a, b, parts in differing if len(parts) == 1]


def check_species(table: Iterable[Species]) -> None:
    """Raises ValueError when two species share a name or all five variants, so a label would have
    two meanings.
    """
    for old, new in combinations(table, 2):
        if new.name == old.name:
            raise ValueError(f"two species are called {new.name!r}; rename one of them")
        if new.variants == old.variants:
            pair = f"{new.name!r} and {old.name!r}"
            raise ValueError(f"{pair} wear the same five parts; change one part")


check_species(SPECIES)
