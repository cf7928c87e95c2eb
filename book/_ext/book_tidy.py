"""Two repairs to what the theme and an extension write into every page, and the run times."""

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.addnodes import pending_xref
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

SHARED_IDS = {"exercise-content", "solution-content"}


def tidy_scripts(app, pagename, templatename, context, doctree):
    """Drop thebe, which this book does not use, and inline scripts given twice.

    The theme loads thebe twice, so that every page would end in "Identifier 'THEBE_JS_URL' has
    already been declared".
    """
    seen, kept = set(), []
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or "")
        body = (getattr(script, "attributes", None) or {}).get("body", "")
        if "THEBE_JS_URL" in body or name.endswith("sphinx-thebe.js") or (name, body) in seen:
            continue
        seen.add((name, body))
        kept.append(script)
    context["script_files"][:] = kept


def tidy_ids(app, doctree, docname):
    """Number the ids that sphinx-exercise gives to all exercises of a page alike: an id may stand
    only once.
    """
    sections = (
        section for section in doctree.findall(nodes.section) if SHARED_IDS & set(section["ids"])
    )
    for number, section in enumerate(sections, 1):
        section["ids"] = [
            f"{name}-{number}" if name in SHARED_IDS else name for name in section["ids"]
        ]


class run_times(nodes.General, nodes.Element):
    """Holds the place of the table until every page has been read."""


class RunTimes(SphinxDirective):
    """``run-times``: each notebook, and the seconds of the run that its page shows."""

    def run(self):
        # so that MyST-NB reads this page again when a notebook has run again
        NbMetadataCollector.set_doc_data(self.env, self.env.docname, "has_exec_table", True)
        return [run_times()]


class FillRunTimes(SphinxPostTransform):
    default_priority = 8  # before links are resolved

    def run(self, **kwargs):
        for place in list(self.document.findall(run_times)):
            place.replace_self(table_of_times(self.env))


def table_of_times(env) -> nodes.table:
    """Two columns: a link to the page, and seconds; the last row is their sum."""
    data = NbMetadataCollector.get_doc_data(env)
    pages = [name for name in sorted(data) if name.startswith("notebooks/")]
    seconds = [(data[name].get("exec_data") or {}).get("runtime") for name in pages]
    rows = [
        (link_to(name, env), f"{s:.0f}" if s else "not measured") for name, s in zip(pages, seconds)
    ]
    whole = f"{sum(seconds):.0f}" if all(seconds) else "not measured"
    rows = [(nodes.Text("notebook"), "seconds"), *rows, (nodes.Text("all of them"), whole)]
    group = nodes.tgroup("", *(nodes.colspec(colwidth=50) for _ in range(2)), cols=2)
    head, body = nodes.thead(), nodes.tbody()
    for i, (name, value) in enumerate(rows):
        cells = (nodes.paragraph("", "", name), nodes.paragraph(text=value))
        row = nodes.row("", *(nodes.entry("", cell) for cell in cells))
        (body if i else head).append(row)
    group += [head, body]
    return nodes.table("", group, classes=["colwidths-auto"])


def link_to(name: str, env) -> pending_xref:
    text = nodes.inline(text=env.titles[name].astext())
    where = {"refdoc": env.docname, "reftarget": f"/{name}", "reftype": "doc", "refdomain": "std"}
    return pending_xref("", text, **where, refexplicit=True, refwarn=True)


def setup(app):
    app.add_node(run_times)
    app.add_directive("run-times", RunTimes)
    app.add_post_transform(FillRunTimes)
    app.connect(
        "html-page-context", tidy_scripts, priority=900
    )  # after the extensions that add the scripts
    app.connect("doctree-resolved", tidy_ids, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
