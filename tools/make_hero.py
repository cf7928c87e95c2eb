"""Draws the picture at the top of the README: book/_static/hero.png."""

from pathlib import Path

from ctrace import filter_bank, load_photo, trace_channels, viz

TARGET = Path(__file__).resolve().parents[1] / "book" / "_static" / "hero.png"


def main() -> None:
    photo = load_photo("astronaut")
    features = filter_bank(photo, grid=60)
    trace = trace_channels(features, n_segments=6)
    h, w = features.grid_hw
    suit = int(trace.segments.reshape(h, w)[int(0.75 * h), int(0.15 * w)])
    mask = trace.mask(suit).reshape(h, w)
    numbers, names, _ = zip(*trace.table(suit, "support", 6), strict=True)
    maps = features.zscores()[0][:, :, list(numbers)].permute(2, 0, 1)
    panels = [photo, viz.Panel(viz.spotlight(photo, mask), outline=mask)]
    panels += [viz.Panel(values=values, outline=mask) for values in maps]
    titles = ["photograph", "segment", *(f"top {i}\n{n}" for i, n in enumerate(names, 1))]
    figure = viz.show_grid(panels, titles, unit="standard deviations")
    figure.savefig(TARGET, dpi=110)
    print(f"{TARGET.name}: the suit is held together by {names[0]} and {names[1]}")


if __name__ == "__main__":
    main()
