"""The bibliography in author-year form: "Shi and Malik, 2000", sorted by author."""

from collections import Counter

from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle


class AuthorYearLabels(BaseLabelStyle):
    """One label for each entry. Where two would be alike all authors are named, as by the roles
    ``cite:ps`` and ``cite:ts`` in the text; letters tell apart what is alike even so.
    """

    def format_labels(self, sorted_entries):
        entries = list(sorted_entries)
        short = Counter(map(label_of, entries))
        labels = [label_of(entry, short[label_of(entry)] > 1) for entry in entries]
        times, seen = Counter(labels), Counter()
        for label in labels:
            yield label + ("abcdefgh"[seen[label]] if times[label] > 1 else "")
            seen[label] += 1


def label_of(entry, everyone: bool = False) -> str:
    """Up to two authors are named, or all; more are "et al."."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [last_name(person) for person in people]
    who = " and ".join(names)
    if len(names) > 2:
        who = f"{', '.join(names[:-1])}, and {names[-1]}" if everyone else f"{names[0]} et al."
    return f"{who}, {entry.fields['year']}"


def last_name(person) -> str:
    """Without the braces and accents of TeX."""
    return str(Text.from_latex(" ".join([*person.prelast_names, *person.last_names])))


class Style(PlainStyle):
    default_label_style = AuthorYearLabels


def setup(app):
    register_plugin("pybtex.style.formatting", "author_year", Style)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
