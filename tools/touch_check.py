"""Play through the figures that can be touched, in a browser: clicks, keys, a finger on a narrow
screen, no script at all. `tools/browser_check.py` calls `play` on every page.
"""

SECONDS = 60  # for a cut; on an idle machine it takes less than one
READY = "figure => figure.dataset.state === 'ready'"
ALIKE = 1e-4  # eigenvalues and attributions, the latter relative to the largest


def play(page, narrow: bool) -> tuple[int, list[str]]:
    """Number of figures that can be touched on the page, and what is wrong with them."""
    holders = page.query_selector_all(".ctrace-touch")
    problems = []
    for number, holder in enumerate(holders, 1):
        kind = holder.get_attribute("data-kind")
        try:
            found = _woken(page, holder) or PLAYS[kind](page, _figure(holder), narrow)
        except Exception as error:  # a click that finds nothing, a cut that never ends
            found = [f"stopped: {' '.join(str(error).split())[:200]}"]
        problems += [f"figure {number} ({kind}): {problem}" for problem in found]
    return len(holders), problems


def without_script(page) -> list[str]:
    """The static figure shows, with its description, where no script runs."""
    problems = []
    for number, holder in enumerate(page.query_selector_all(".ctrace-touch"), 1):
        picture = _static(holder).query_selector("img")
        if picture is None or not picture.is_visible() or not picture.get_attribute("alt"):
            problems.append(f"figure {number}: no static picture without a script")
    return problems


def _static(holder):
    return holder.evaluate_handle(
        "e => document.getElementById(e.dataset.figure) || e.querySelector('figure')"
    ).as_element()


def _figure(holder):
    return _static(holder).query_selector(".ct-figure")


def _woken(page, holder) -> list[str]:
    """Scroll to a figure and wait until it lives in the place of its picture."""
    if _static(holder) is None or _figure(holder) is None:
        return ["does not come to life: no figure to stand in"]
    _static(holder).scroll_into_view_if_needed()
    _wait(page, _figure(holder))
    shown = _static(holder).query_selector_all("img")
    if any(picture.is_visible() for picture in shown):
        return ["the static picture shows beside the live one"]
    return []


def _wait(page, figure) -> None:
    page.wait_for_function(READY, arg=figure, timeout=1000 * SECONDS)


def _told(figure, name: str) -> float:
    value = figure.get_attribute(f"data-{name}")
    return float("nan") if value is None else float(value)


# ---- the channel explorer


def explorer(page, figure, narrow: bool) -> list[str]:
    if narrow:
        return _tapped(page, figure)
    problems = []
    for label in figure.query_selector_all("fieldset >> nth=0 >> label"):
        label.click()
        page.wait_for_timeout(50)
        _wait(page, figure)
        problems += [f"{label.inner_text()}: {problem}" for problem in _compared(figure)]
    figure.query_selector("fieldset >> nth=0 >> label").click()
    page.wait_for_timeout(50)
    _wait(page, figure)
    for part in (_pointed, _channels, _flattened, _nudged, _turned, _counted):
        problems += part(page, figure)
    return problems


def _compared(figure) -> list[str]:
    """The first cut beside that of `ctrace`, which the payload holds."""
    problems = []
    if _told(figure, "differ") != 0:
        problems.append(f"{_told(figure, 'differ')} cells are not where ctrace puts them")
    for what in ("error", "gradient"):
        if not _told(figure, what) <= ALIKE:
            problems.append(f"{what} against ctrace: {_told(figure, what)}")
    return problems


def _pointed(page, figure) -> list[str]:
    canvas = figure.query_selector(".ct-view canvas")
    box, seen = canvas.bounding_box(), set()
    for x, y in ((0.5, 0.1), (0.1, 0.9), (0.9, 0.9), (0.5, 0.5)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        seen.add(figure.get_attribute("data-outlined"))
    if len(seen) < 2:
        return [f"pointing at four places outlines segment {seen} only"]
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.1 * box["height"])
    _wait(page, figure)
    said = figure.query_selector(".ct-status").inner_text()
    return [] if said.startswith("Segment") else [f"a click on a segment says {said!r}"]


def _names(figure) -> list[str]:
    return [name.inner_text() for name in figure.query_selector_all(".ct-bar .ct-name")]


def _channels(page, figure) -> list[str]:
    """By keyboard: into the list, down to the second bar, choose it."""
    figure.query_selector(".ct-bar").focus()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    chosen = figure.query_selector('.ct-bar[aria-pressed="true"] .ct-name')
    if chosen is None or chosen.inner_text() != _names(figure)[1]:
        return ["the keys do not choose the second channel"]
    if not figure.query_selector(".ct-detail canvas").is_visible():
        return ["no map of the chosen channel"]
    said = figure.query_selector(".ct-status").inner_text()
    return [] if "Mean inside" in said else [f"the channel's values are not said: {said!r}"]


def _flattened(page, figure) -> list[str]:
    figure.query_selector('[data-act="flatten"]').focus()
    page.keyboard.press("Enter")
    _wait(page, figure)
    left = _told(figure, "left")
    if not 0 < left < 1:
        return [f"a flattened channel leaves {left} of the segment"]
    if figure.query_selector(".ct-off") is None:
        return ["the flattened channel is not marked"]
    figure.query_selector('[data-act="flatten"]').click()
    _wait(page, figure)
    return [f"put back: {problem}" for problem in _compared(figure)]


def _nudged(page, figure) -> list[str]:
    for act in ("up", "down"):
        figure.query_selector(f'[data-act="{act}"]').click()
        _wait(page, figure)
        apart = abs(_told(figure, "predicted") - _told(figure, "measured"))
        if not apart < 0.02:
            return [f"nudged {act}: predicted and measured are {apart} apart"]
    return []


def _turned(page, figure) -> list[str]:
    """With the published sign everything that was first is last."""
    before = _names(figure)
    figure.query_selector("label:text('as published')").click()
    after = _names(figure)
    figure.query_selector("label:text('of the effect')").click()
    return [] if after == before[::-1] else ["the published sign does not turn the list around"]


def _counted(page, figure) -> list[str]:
    slider = figure.query_selector(".ct-settings input[type=range]")
    before = int(slider.input_value())
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(50)
    _wait(page, figure)
    shown = len(figure.query_selector_all(".ct-view ~ div input[type=radio]"))
    return [] if shown == before - 1 else [f"k = {before - 1} shows {shown} segments"]


def _tapped(page, figure) -> list[str]:
    canvas = figure.query_selector(".ct-view canvas")
    box = canvas.bounding_box()
    canvas.tap(position={"x": box["width"] / 2, "y": box["height"] / 8})
    _wait(page, figure)
    figure.query_selector(".ct-bar").tap()
    detail = figure.query_selector(".ct-detail canvas")
    if detail is None or detail.bounding_box()["width"] < 250 / len(
        figure.query_selector_all(".ct-detail canvas")
    ):
        return ["a finger does not open a map that can be read"]
    return []


# ---- a bird to take apart


def bird(page, figure, narrow: bool) -> list[str]:
    problems = _summed(figure)
    if not _told(figure, "shares") < 2e-3:  # logits have 16 bits
        problems.append(f"Shapley values are {_told(figure, 'shares')} from those of ctrace")
    before = _row(figure)
    figure.query_selector('[data-act="wing"]').focus()
    page.keyboard.press("Enter")
    if _row(figure) == before:
        problems.append("without its wing the bird has the same logits")
    problems += _summed(figure)
    page.keyboard.press("Enter")
    if _row(figure) != before:
        problems.append("with its wing back the bird has other logits")
    figure.query_selector("fieldset >> nth=1 >> label >> nth=2").click()
    figure.query_selector("select").select_option("3")
    if "changed by" not in figure.query_selector(".ct-status").inner_text():
        problems.append("a swap is not said")
    figure.query_selector('[data-act="toadstool"]').click()
    problems += _summed(figure)
    canvas = figure.query_selector("canvas")
    box = canvas.bounding_box()
    pressed = '.ct-row button[aria-pressed="true"]'
    parts = len(figure.query_selector_all(pressed))
    places = [(x / 10, y / 10) for y in (5, 6, 4, 7) for x in (5, 4, 6, 3, 7)]
    for x, y in places:  # until a part is under the pointer
        position = {"x": x * box["width"], "y": y * box["height"]}
        canvas.tap(position=position) if narrow else canvas.click(position=position)
        if len(figure.query_selector_all(pressed)) == parts - 1:
            return problems
    return [*problems, "no click on the picture takes a part away"]


def _row(figure) -> list[str]:
    return [value.inner_text() for value in figure.query_selector_all(".ct-still .ct-value")][:14]


def _summed(figure) -> list[str]:
    apart = abs(_told(figure, "sum") - _told(figure, "whole"))
    return [] if apart < 1e-6 else [f"Shapley values and the logit they share are {apart} apart"]


# ---- bandwidth and k


def bandwidth(page, figure, narrow: bool) -> list[str]:
    problems = _alike(figure)
    kept = figure.get_attribute("data-kept")
    sliders = figure.query_selector_all("input[type=range]")
    press = sliders[2].tap if narrow else sliders[2].focus
    press()
    page.keyboard.press("End")
    page.wait_for_timeout(50)
    _wait(page, figure)
    if figure.get_attribute("data-kept") == kept:
        problems.append("more noise moves no point")
    for choice in ("local scales", "Rocket") if not narrow else ():
        label = figure.query_selector(f"label:text('{choice}')")
        if label is not None:
            label.click()
            page.wait_for_timeout(50)
            _wait(page, figure)
            problems += [f"{choice}: {problem}" for problem in _alike(figure)]
    sliders[1].focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(50)
    _wait(page, figure)
    if "k = 2" not in figure.query_selector(".ct-status").inner_text():
        problems.append("the slider of k does not say k = 2")
    return problems


def _alike(figure) -> list[str]:
    if _told(figure, "differ") != 0:
        return [f"{_told(figure, 'differ')} cells are not where ctrace puts them"]
    if not _told(figure, "error") <= ALIKE:
        return [f"eigenvalues against ctrace: {_told(figure, 'error')}"]
    return []


# ---- which map asked the trained model


def guess(page, figure, narrow: bool) -> list[str]:
    """A wrong guess, told apart by the keys, and then a right one."""
    problems = []
    for right in (0, 1):
        asked = figure.get_attribute("data-asked")
        tiles = figure.query_selector_all(".ct-tile")
        letters = [tile.inner_text()[0] for tile in tiles]
        tile = tiles[letters.index(asked) if right else letters.index(asked) - 1]
        if narrow:
            tile.tap()
        else:
            tile.focus()
            page.keyboard.press("Enter")
        if _told(figure, "right") != right:
            problems.append(f"after guess {right + 1} it counts {_told(figure, 'right')} right")
        if not figure.query_selector_all(".ct-told li"):
            problems.append(f"after guess {right + 1} no verdict is shown")
        if not right:
            page.keyboard.press("Enter")  # the next picture
    return problems


PLAYS = {"explorer": explorer, "bird": bird, "bandwidth": bandwidth, "guess": guess}
