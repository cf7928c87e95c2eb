"""What the Sphinx extensions of the book write: labels of the bibliography, table of run times."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from pybtex.database import parse_string

EXTENSIONS = Path(__file__).parents[1] / "book/_ext"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(key, authors, year):
    return f"@misc{{{key}, author = {{{authors}}}, title = {{T}}, year = {{{year}}}}}"


def test_labels_name_all_authors_and_then_letters_where_two_are_alike():
    works = [
        entry("a", "Park, Bumjin and Jeon, Giyeong and Choi, Jaesik", 2023),
        entry("b", "Park, Sung Min and Georgiev, Kristian and Ilyas, Andrew", 2023),
        entry("c", r"Meil{\u{a}}, Marina and Shi, Jianbo", 2001),
        entry("d", "von Luxburg, Ulrike", 2007),
        entry("e", "Park, A. and Jeon, B. and Choi, C.", 2024),
        entry("f", "Shi, Jianbo", 2000),
        entry("g", "Shi, Jianbo", 2000),
    ]
    entries = parse_string("\n".join(works), "bibtex").entries.values()
    labels = [e.label for e in load("author_year").Style().format_entries(entries)]
    assert sorted(labels) == [
        "Meilă and Shi, 2001",
        "Park et al., 2024",
        "Park, Georgiev, and Ilyas, 2023",
        "Park, Jeon, and Choi, 2023",
        "Shi, 2000a",
        "Shi, 2000b",
        "von Luxburg, 2007",
    ]


@pytest.mark.parametrize("last, whole", [(2.6, "15"), (None, "not measured")])
def test_run_times_are_summed_only_when_all_are_known(monkeypatch, last, whole):
    tidy = load("book_tidy")
    times = {"notebooks/01_a": 12.4, "notebooks/02_b": last, "book/trust": 3.0}
    data = {name: {"exec_data": {"runtime": seconds}} for name, seconds in times.items()}
    monkeypatch.setattr(tidy.NbMetadataCollector, "get_doc_data", lambda env: data)
    env = SimpleNamespace(docname="book/x", titles={n: nodes.title(text=n) for n in times})
    rows = list(tidy.table_of_times(env).findall(nodes.row))
    assert [row[1].astext() for row in rows][1:] == ["12", "3" if last else whole, whole]
    assert [row[0].astext() for row in rows][1:-1] == ["notebooks/01_a", "notebooks/02_b"]
