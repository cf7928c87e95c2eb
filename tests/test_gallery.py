import base64
import html
import io
import json
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from ctrace.viz import gallery as module  # noqa: E402
from ctrace.viz.gallery import DPI, Gallery, show_figure  # noqa: E402
from ctrace.world.photos import load_photo  # noqa: E402

RECORD = "application/papermill.record/image/png"


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


@pytest.fixture
def shown(monkeypatch):
    """Every (data, metadata) that reached the notebook."""
    sent = []
    monkeypatch.setattr(
        module, "_display", lambda data, metadata=None: sent.append((data, metadata))
    )
    return sent


def two_dots() -> Gallery:
    gallery = Gallery("dots").add("Example 1", png("red"), alt="A red dot.", caption="Red.")
    return gallery.add("Example 2", png("blue"), alt="A blue dot.", caption="Blue.")


def test_every_picture_is_glued_under_its_own_name_before_the_tabs(shown):
    two_dots().show()
    glued = [(data, meta["scrapbook"]["name"]) for data, meta in shown[:-1]]
    assert [name for _, name in glued] == ["dots-1", "dots-2"]
    assert [base64.b64decode(data[RECORD]) for data, _ in glued] == [png("red"), png("blue")]
    assert set(shown[-1][0]) == {"text/markdown", "text/html", "text/plain"}


def test_book_form_refers_to_exactly_the_glued_names_and_carries_labels_alts_and_captions(shown):
    two_dots().show()
    text = shown[-1][0]["text/markdown"]
    assert re.findall(r"\{glue:figure\} (\S+)", text) == ["dots-1", "dots-2"]
    assert re.findall(r":name: (\S+)", text) == ["fig-dots-1", "fig-dots-2"]
    assert re.findall(r"\{tab-item\} (.+)", text) == ["Example 1", "Example 2"]
    assert [json.loads(alt) for alt in re.findall(r":alt: (.+)", text)] == [
        "A red dot.",
        "A blue dot.",
    ]
    assert "\n\nRed.\n```" in text and "\n\nBlue.\n```" in text
    assert text.startswith("::::{tab-set}\n") and text.endswith("\n::::")


def test_html_form_holds_each_picture_once_and_opens_the_first_tab(shown):
    two_dots().show()
    page = shown[-1][0]["text/html"]
    sources = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(source) for source in sources] == [png("red"), png("blue")]
    assert re.findall(r'alt="([^"]+)"', page) == ["A red dot.", "A blue dot."]
    assert re.findall(r'id="([^"]+)"( checked)?', page) == [
        ("tab-dots-1", " checked"),
        ("tab-dots-2", ""),
    ]
    assert re.findall(r'for="([^"]+)"', page) == ["tab-dots-1", "tab-dots-2"]
    assert "<script" not in page


def test_special_characters_survive_in_both_forms(shown):
    alt = 'Width < height: "tall" & thin, channel #3: b*'
    Gallery("odd").add("a < b", png("red"), alt=alt, caption="$x < y$ & <b>").show()
    bundle = shown[-1][0]
    assert json.loads(re.search(r":alt: (.+)", bundle["text/markdown"])[1]) == alt
    assert html.unescape(re.search(r'alt="([^"]+)"', bundle["text/html"])[1]) == alt
    assert "<b>" not in bundle["text/html"] and "a &lt; b" in bundle["text/html"]
    assert "$x < y$ & <b>" in bundle["text/markdown"]


def test_equal_labels_of_two_galleries_move_together_and_different_ones_do_not(shown):
    two_dots().show()
    Gallery("more").add("Example 1", png("red"), alt="Red.", caption="Red.").add(
        "k = 3", png("blue"), alt="Blue.", caption="B."
    ).show()
    first, second = (
        re.findall(r":sync: (\S+)", data["text/markdown"])
        for data, _ in shown
        if "text/markdown" in data
    )
    assert first == ["example-1", "example-2"]
    assert second == ["example-1", "k-3"]


def test_figure_is_saved_at_the_common_resolution_and_not_shown_twice(shown):
    figure, axes = plt.subplots(figsize=(4, 3))
    axes.plot([0, 1])
    number = figure.number
    Gallery("plot").add("one", figure, alt="A line.", caption="A line.").show()
    width, height = size_of(base64.b64decode(shown[0][0][RECORD]))
    assert abs(width - 4 * DPI) < DPI / 2 and abs(height - 3 * DPI) < DPI / 2
    assert number not in plt.get_fignums()


def test_pil_image_keeps_its_pixels(shown):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    show_figure(Image.fromarray(pixels), alt="A ramp.", caption="A ramp.", name="ramp")
    back = Image.open(io.BytesIO(base64.b64decode(shown[0][0][RECORD])))
    assert np.array_equal(np.asarray(back), pixels)


def test_single_figure_has_both_forms_and_one_name(shown):
    show_figure(png("red"), alt="A red dot.", caption="Look: red.", name="dot")
    (glued, meta), (bundle, _) = shown
    assert meta["scrapbook"]["name"] == "dot" and base64.b64decode(glued[RECORD]) == png("red")
    assert (
        bundle["text/markdown"]
        == '```{glue:figure} dot\n:alt: "A red dot."\n:name: fig-dot\n\nLook: red.\n```'
    )
    assert base64.b64encode(png("red")).decode() in bundle["text/html"]
    assert (
        'alt="A red dot."' in bundle["text/html"]
        and "<figcaption>Look: red.</figcaption>" in bundle["text/html"]
    )


def test_text_over_several_lines_becomes_one_line(shown):
    show_figure(png("red"), alt="A red\n    dot.", caption="Look:\n\n    red.", name="dot")
    assert ':alt: "A red dot."' in shown[-1][0]["text/markdown"]
    assert "\n\nLook: red.\n" in shown[-1][0]["text/markdown"]


@pytest.mark.parametrize("field", ["label", "alt", "caption"])
@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_missing_words_are_refused(field, empty):
    words = {"label": "one", "alt": "A dot.", "caption": "A dot."} | {field: empty}
    with pytest.raises(ValueError, match=f"{field} is empty"):
        Gallery("g").add(figure=png("red"), **words)


def test_duplicate_label_is_refused_and_leaves_the_gallery_as_it_was():
    gallery = two_dots()
    with pytest.raises(ValueError, match="already has a tab 'Example 2'.*Example 1, Example 2"):
        gallery.add("Example 2", png("red"), alt="Red.", caption="Red.")
    assert len(gallery) == 2


def test_refused_figure_leaves_the_gallery_as_it_was():
    gallery = two_dots()
    with pytest.raises(TypeError, match="tab 'three'.*got list"):
        gallery.add("three", [[0.0]], alt="A list.", caption="A list.")
    assert len(gallery) == 2


def test_empty_gallery_is_refused(shown):
    with pytest.raises(ValueError, match="'g' is empty"):
        Gallery("g").show()
    assert shown == []


@pytest.mark.parametrize("alt", ["figure.png", "images/tutorials/plot_1.JPG"])
def test_file_name_is_no_alt_text(alt):
    with pytest.raises(ValueError, match="file name"):
        show_figure(png("red"), alt=alt, caption="A dot.", name="dot")


@pytest.mark.parametrize("slug", ["", "Two Words", "under_score", "-lead", "a--b", "ä", None])
def test_names_that_cannot_be_anchors_are_refused(slug):
    with pytest.raises(ValueError, match="lower-case letters"):
        Gallery(slug)
    with pytest.raises(ValueError, match="lower-case letters"):
        show_figure(png("red"), alt="A dot.", caption="A dot.", name=slug)


@pytest.mark.parametrize("caption", ["ends ``` early", "ends ::: early"])
def test_fence_in_a_caption_is_refused(caption):
    with pytest.raises(ValueError, match="fence"):
        Gallery("g").add("one", png("red"), alt="A dot.", caption=caption)


def test_an_animated_gif_is_carried_as_it_is(shown):
    frames, buffer = [Image.new("P", (4, 3), colour) for colour in (0, 1)], io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    show_figure(buffer.getvalue(), alt="Two colours in turn.", caption="Blinking.", name="blink")
    (glued, _), (bundle, _) = shown
    assert base64.b64decode(glued["application/papermill.record/image/gif"]) == buffer.getvalue()
    assert (
        "data:image/gif;base64," in bundle["text/html"]
        and "{glue:figure} blink" in bundle["text/markdown"]
    )


def photograph_figure(facecolor="white"):
    """Four photographs and a line of text, which make a heavy PNG."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 8), facecolor=facecolor)
    for ax, name in zip(axes.flat, ("chelsea", "coffee", "flower", "motorcycle")):
        ax.imshow(load_photo(name, (400, 400)), interpolation="nearest")
    axes[0, 0].set_title("channel 271")
    return figure


def test_a_heavy_figure_of_photographs_goes_as_a_jpeg_that_looks_the_same(shown):
    buffer = io.BytesIO()
    photograph_figure().savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    exact = np.asarray(Image.open(buffer).convert("RGB"), float)
    show_figure(photograph_figure(), alt="Four.", caption="Four.", name="four")
    (glued, meta), (bundle, _) = shown
    picture = base64.b64decode(glued["application/papermill.record/image/jpeg"])
    assert "data:image/jpeg;base64," in bundle["text/html"]
    assert len(picture) < 0.4 * len(buffer.getvalue()) > 0.4 * module.HEAVY
    drawn = np.asarray(Image.open(io.BytesIO(picture)), float)
    assert drawn.shape == exact.shape and abs(drawn - exact).mean() < 2.5


@pytest.mark.parametrize("kind", ["light", "transparent", "noise"])
def test_other_figures_stay_exact(kind, shown):
    if kind == "noise":  # a JPEG of it is hardly smaller
        noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), "uint8")
        figure = Image.fromarray(noise)
    else:
        figure = photograph_figure("none") if kind == "transparent" else plt.figure()
    show_figure(figure, alt="A figure.", caption="A figure.", name="exact")
    assert RECORD in shown[0][0]


def corner(picture: bytes) -> tuple:
    return Image.open(io.BytesIO(picture)).convert("RGBA").getpixel((0, 0))


@pytest.mark.parametrize("kind", ["lines", "photograph", "map"])
def test_charts_follow_the_colour_scheme_and_colours_that_are_evidence_do_not(kind, shown):
    figure, axes = plt.subplots(figsize=(2, 2), facecolor="white")
    axes.plot([0, 1])
    if kind == "photograph":
        axes.imshow(np.eye(3))
    if kind == "map":
        axes.pcolormesh(np.eye(3))
    show_figure(figure, alt="A figure.", caption="A figure.", name="figure")
    (glued, _), (bundle, _) = shown
    chart = kind == "lines"
    assert (f":figclass: {module.CHART}\n" in bundle["text/markdown"]) == chart
    assert (f'class="ctrace-figure {module.CHART}"' in bundle["text/html"]) == chart
    assert corner(base64.b64decode(glued[RECORD]))[3] == (0 if chart else 255)


def test_bytes_of_a_jpeg_are_taken_as_they_are(shown):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, format="JPEG")
    show_figure(buffer.getvalue(), alt="A red dot.", caption="Red.", name="dot")
    glued = shown[0][0]["application/papermill.record/image/jpeg"]
    assert base64.b64decode(glued) == buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"GIF", b"\x89PNG"])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(TypeError, match="neither the PNG signature nor GIF89a"):
        Gallery("g").add("one", data, alt="A dot.", caption="A dot.")


def test_module_needs_no_plotting_library():
    path = module.__file__
    code = (
        "import importlib.util as util, sys; "
        f"spec = util.spec_from_file_location('gallery', {path!r}); "
        "module = util.module_from_spec(spec); sys.modules['gallery'] = module; "
        "spec.loader.exec_module(module); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
