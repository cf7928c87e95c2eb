"""What nbmake runs is what the book shows: every notebook that passes goes into the book's own
cache, with what it was made of and how long it took. With --only-changed, what is in the cache does
not run again.
"""

import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# The percent scripts beside the notebooks are their source, not modules to import for doctests.
collect_ignore_glob = ["notebooks/*.py"]


def pytest_addoption(parser):
    parser.addoption(
        "--only-changed",
        action="store_true",
        help="with --nbmake: skip a notebook when its cells, the files of ctrace that it depends "
        "on and the environment are those of its last passing run",
    )


def pytest_configure(config):
    if getattr(config.option, "nbmake", False):
        _keep_what_nbmake_runs()


def pytest_collection_modifyitems(config, items):
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        for item in on_gpu if not torch.cuda.is_available() else []:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if config.option.only_changed:
        from tools.depends import Package
        from tools.fresh_cache import has_run

        package = Package(HERE)
        for item in items:
            if getattr(item, "nbmake", False) and has_run(Path(item.filename), package):
                item.add_marker(pytest.mark.skip(reason="passed before, nothing changed since"))


def _keep_what_nbmake_runs():
    # an internal of nbmake: pyproject.toml holds it below 1.6
    from nbmake.nb_run import NotebookRun

    from tools.depends import Package
    from tools.fresh_cache import made_of

    if getattr(NotebookRun.execute, "keeps_result", False):
        return
    run = NotebookRun.execute

    def run_and_keep(self):
        # before the run: what is edited meanwhile differs
        parts, started = made_of(Path(self.filename), Package(HERE)), time.perf_counter()
        result = run(self)
        if result.error is None:
            # the name under which MyST-NB looks for the run time that the benchmarks page shows
            known = {"made_of": parts, "execution_seconds": time.perf_counter() - started}
            _put_in_cache(result.nb, self.filename, known)
        return result

    run_and_keep.keeps_result = True
    NotebookRun.execute = run_and_keep


def _put_in_cache(notebook, path, known):
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    from tools.fresh_cache import CACHE

    for cell in notebook.cells:
        # start and end times would change the page at every run
        cell.metadata.pop("execution", None)
    bundle = CacheBundleIn(notebook, str(path), data=known)
    get_cache(str(HERE / CACHE)).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
