"""What nbmake runs is what the book shows: every notebook that passes goes into the book's own
cache.
"""

from pathlib import Path

CACHE = Path(__file__).parent / "_build" / ".jupyter_cache"

# The percent scripts beside the notebooks are their source, not modules to import for doctests.
collect_ignore_glob = ["notebooks/*.py"]


def pytest_configure(config):
    if getattr(config.option, "nbmake", False):
        _keep_what_nbmake_runs()


def _keep_what_nbmake_runs():
    from nbmake.nb_run import (
        NotebookRun,  # an internal of nbmake: pyproject.toml holds it below 1.6
    )

    if getattr(NotebookRun.execute, "keeps_result", False):
        return
    run = NotebookRun.execute

    def run_and_keep(self):
        result = run(self)
        if result.error is None:
            _put_in_cache(result.nb, self.filename)
        return result

    run_and_keep.keeps_result = True
    NotebookRun.execute = run_and_keep


def _put_in_cache(notebook, path):
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    for cell in notebook.cells:
        cell.metadata.pop(
            "execution", None
        )  # start and end times would change the page at every run
    bundle = CacheBundleIn(notebook, str(path))
    get_cache(str(CACHE)).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
