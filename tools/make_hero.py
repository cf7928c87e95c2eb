"""Draws the picture that README and introduction open with: book/_static/hero.jpg."""

from pathlib import Path

import torch.nn.functional as F
from einops import rearrange

from ctrace import conv_features, load_model, load_photo, trace_channels, viz

TARGET = Path(__file__).resolve().parents[1] / "book" / "_static" / "hero.jpg"


def main() -> None:
    photos = [load_photo(name, (296, 352)) for name in ("astronaut", "hopper")]
    grid = conv_features(photos, load_model("squeezenet", device="cpu"), "features.10")
    trace, (h, w) = trace_channels(grid, n_segments=8), grid.grid_hw
    segments = rearrange(trace.segments, "(b h w) -> b h w", h=h, w=w)
    face = int(segments[0, int(0.25 * h), int(0.42 * w)])
    numbers = [number for number, _, _ in trace.table(face, "support", 3)]
    panels = []
    for photo, mask, maps in zip(photos, segments == face, grid.zscores(), strict=True):
        image, outline = viz.as_rgb(photo), viz.enlarged(mask, photo)
        seen = 0.25 * image + 0.75 * viz.spotlight(photo, mask)
        panels.append(viz.Panel(seen, outline=outline))
        for values in rearrange(maps[:, :, numbers], "h w c -> c 1 1 h w"):
            values = F.interpolate(values, image.shape[:2], mode="bilinear")[0, 0]
            panels.append(viz.Panel(image, values=values, outline=outline))
    titles = ["one segment", *(f"channel {number}" for number in numbers)]
    figure = viz.show_grid(panels, titles, unit="standard deviations", limit=4)
    for ax in figure.axes:
        ax.title.set(fontsize=13)
    figure.savefig(TARGET, dpi=110, pil_kwargs={"quality": 88})
    print(f"{TARGET.name}: segment {face}, held together by channels {numbers} of fire8")


if __name__ == "__main__":
    main()
