"""Two repairs to what the theme and an extension write into every page."""

from docutils import nodes

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


def setup(app):
    app.connect(
        "html-page-context", tidy_scripts, priority=900
    )  # after the extensions that add the scripts
    app.connect("doctree-resolved", tidy_ids, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
