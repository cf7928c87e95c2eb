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
    numbers, names, values = zip(*trace.table(suit, "support", 5), strict=True)
    maps = features.zscores()[0][:, :, list(numbers)].permute(2, 0, 1)
    figure = viz.show_trace(
        photo, trace.mask(suit).reshape(h, w), list(maps), names, numbers, values
    )
    figure.savefig(TARGET, dpi=110)
    print(f"{TARGET.name}: the suit is held together by {names[0]} and {names[1]}")


if __name__ == "__main__":
    main()
