"""The bibliography in author-year form: "Shi and Malik, 2000", sorted by author."""

from collections import Counter

from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle


class AuthorYearLabels(BaseLabelStyle):
    """One label for each entry; those of one author and year get letters."""

    def format_labels(self, sorted_entries):
        labels = [label_of(entry) for entry in sorted_entries]
        times, seen = Counter(labels), Counter()
        for label in labels:
            yield label + ("abcdefgh"[seen[label]] if times[label] > 1 else "")
            seen[label] += 1


def label_of(entry) -> str:
    """Up to two authors are named, more are "et al."."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [last_name(person) for person in people]
    who = names[0] if len(names) == 1 else " and ".join(names[:2])
    who = f"{names[0]} et al." if len(names) > 2 else who
    return f"{who}, {entry.fields['year']}"


def last_name(person) -> str:
    """Without the braces and accents of TeX."""
    return str(Text.from_latex(" ".join([*person.prelast_names, *person.last_names])))


class Style(PlainStyle):
    default_label_style = AuthorYearLabels


def setup(app):
    register_plugin("pybtex.style.formatting", "author_year", Style)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
