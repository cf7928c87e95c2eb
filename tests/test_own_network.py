"""A network of the reader's own: from its name, over the hub, to the galleries of the pages."""

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
import torch
from nbclient import NotebookClient
from safetensors.torch import load_file, save_file

from ctrace.world.models import MODEL_VARIABLE, chosen_model, load_model
from ctrace.world.weights import WEIGHTS_VARIABLE
from tests.local_hub import environment_of, local_hub, weights_of

ROOT = Path(__file__).resolve().parents[1]
HEADING = "## A network of your own"
TRACING, GRADCAM = "04_channel_tracing", "05_gradcam"
OWN_PADDING, WITHOUT_GRID = "tf_efficientnet_lite0", "xcit_nano_12_p16_224"
PAGES = [(TRACING, "vit_tiny_patch16_224"), (TRACING, "resnet18"), (TRACING, OWN_PADDING)]
PAGES += [(GRADCAM, "resnet18"), (GRADCAM, "vit_tiny_patch16_224")]
PICTURE = "data:image/(?:png|jpeg);base64,"
SCRIPT = """
import os
import torch
from safetensors.torch import load_file, save_file
from ctrace.world.models import chosen_model, load_model

for _ in range(2):
    network = chosen_model()
print(network.info.weights, network.info.classes[281], sep=" | ")
save_file({k: v.contiguous() for k, v in network.state_dict().items()}, os.environ["KEEP"])
try:
    load_model("test_resnet", "pretrained")
except ValueError as error:
    print("refused:", error)
"""


def section(page: str):
    """The imports and the setup of a page and what stands under `HEADING`, as a notebook."""
    notebook = jupytext.read(ROOT / "notebooks" / f"{page}.py")
    last = next(i for i, c in enumerate(notebook.cells) if "started = time.time()" in c.source)
    setup = [c for c in notebook.cells[: last + 1] if c.cell_type == "code"]
    text = [c.source if c.cell_type == "markdown" else "" for c in notebook.cells]
    start = next(i for i, source in enumerate(text) if HEADING in source)
    end = next(i for i in range(start + 1, len(text)) if re.search("(?m)^## ", text[i]))
    notebook.cells = setup + notebook.cells[start:end]
    return notebook


def exported_by_make() -> dict[str, str]:
    """What every run of the book finds in its environment."""
    return dict(re.findall(r"(?m)^export (\w+) \?= (\S+)$", (ROOT / "Makefile").read_text()))


def run(notebook, environment) -> list[dict]:
    """The outputs of all cells, run in a kernel with this environment."""
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(env=environment)
    return [o for cell in notebook.cells for o in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """What a new process says and keeps whose hub has one network and not the other, and what the
    hub was asked for.
    """
    folder, (repository, content, state) = tmp_path_factory.mktemp("hub"), weights_of("test_vit")
    with local_hub({(repository, "model.safetensors"): content}) as (address, asked):
        more = {MODEL_VARIABLE: "test_vit", "KEEP": str(folder / "kept.safetensors")}
        said = subprocess.check_output(
            [sys.executable, "-c", SCRIPT],
            env=environment_of(address, str(folder), **more),
            text=True,
            cwd=ROOT,
        )
    return said, load_file(folder / "kept.safetensors"), state, asked, repository


def test_weights_named_by_the_variable_come_from_the_hub_once_and_bit_for_bit(fetched):
    said, kept, state, asked, repository = fetched
    assert "pretrained timm weights | tabby, tabby cat" in said
    assert kept.keys() == state.keys() and all(torch.equal(kept[k], state[k]) for k in state)
    fetches = [line for line in asked if line.startswith("GET") and "test_vit" in line]
    assert fetches == [f"GET /{repository}/resolve/main/model.safetensors"]


def test_a_hub_without_the_file_is_refused_with_three_ways_on_and_never_by_random_weights(fetched):
    said, _, _, asked, _ = fetched
    assert "refused: no pretrained weights for 'test_resnet'" in said and "RANDOM" not in said
    assert "Three ways on: (1)" in said and WEIGHTS_VARIABLE in said
    assert any("test_resnet" in line for line in asked)


def test_a_folder_of_weights_serves_the_variable_too(tmp_path, monkeypatch):
    _, _, state = weights_of("test_vit", seed=3)
    save_file(state, str(tmp_path / "test_vit.safetensors"))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    monkeypatch.setenv(MODEL_VARIABLE, "test_vit")
    network = chosen_model()
    assert network.info.weights == "local file test_vit.safetensors"
    assert bool((network.head.weight.cpu() == state["head.weight"]).all())


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_there_is_no_model_and_one_line_says_so(value, monkeypatch, capsys):
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(MODEL_VARIABLE, value)
    assert chosen_model() is None
    assert capsys.readouterr().out == "CTRACE_MODEL names no model\n"


def test_a_bundled_model_can_be_named(monkeypatch):
    monkeypatch.setenv(MODEL_VARIABLE, "aviary-vit-0")
    assert chosen_model().info == load_model("aviary-vit-0").info


@pytest.mark.parametrize("page, name", PAGES)
def test_section_of_a_page_shows_the_network_that_came_from_the_hub(page, name, tmp_path):
    repository, content, _ = weights_of(name)
    with local_hub({(repository, "model.safetensors"): content}) as (address, asked):
        more = exported_by_make() | {MODEL_VARIABLE: name}
        outputs = run(section(page), environment_of(address, str(tmp_path), **more))
    assert f"GET /{repository}/resolve/main/model.safetensors" in asked
    text = str(outputs)
    assert f"{name}: pretrained timm weights" in text
    assert len(re.findall(PICTURE, text)) == 4  # a tab for each photograph
    assert "jupyter.widget" not in text  # whose scripts would come from another host
    assert f"{name} (pretrained timm weights)" in text  # in the captions of its gallery


@pytest.mark.parametrize("page", [TRACING, GRADCAM])
def test_section_of_a_page_shows_the_bundled_photograph_network(page, tmp_path):
    """Of which timm has no list of stages."""
    environment = environment_of("http://127.0.0.1:9", str(tmp_path))
    text = str(run(section(page), environment | {MODEL_VARIABLE: "squeezenet"}))
    assert len(re.findall(PICTURE, text)) == 4 and "gives no grid" not in text
    if page == TRACING:  # cells of 8 pixels: the layer that the page itself cuts
        assert "squeezenet (bundled weights), grid 48 x 48" in text


@pytest.mark.parametrize("page", [TRACING, GRADCAM])
def test_section_says_in_one_sentence_that_a_network_keeps_no_grid(page, tmp_path):
    repository, content, _ = weights_of(WITHOUT_GRID)
    with local_hub({(repository, "model.safetensors"): content}) as (address, _):
        more = exported_by_make() | {MODEL_VARIABLE: WITHOUT_GRID}
        outputs = run(section(page), environment_of(address, str(tmp_path), **more))
    said = [line for o in outputs for line in o.get("text", "").splitlines()]
    [sentence] = [line for line in said if "gives no grid of places" in line]
    assert sentence.startswith(f"{WITHOUT_GRID} gives no grid of places to ")
    assert not re.findall(PICTURE, str(outputs))


@pytest.mark.parametrize("page, name", PAGES)
def test_section_says_how_to_get_a_network(page, name):
    """That it draws nothing without one is what every run of the book shows."""
    words = next(c.source for c in section(page).cells if HEADING in c.source)
    for word in ("make book MODEL=resnet50", MODEL_VARIABLE, WEIGHTS_VARIABLE):
        assert word in words
