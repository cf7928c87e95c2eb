"""From a data set to a fitted head, its accuracy, and explanations in words.

    python -m ctrace.carrot --data aviary --model aviary-vit-0
    python -m ctrace.carrot --data birds.parquet --model vit_base_patch16_224.dino --cache
        embeddings --readout residual_abs
    python -m ctrace.carrot --data photos/ --model vit_small_patch16_224 --explain 0 7

Data is a folder of <split>/<class>/ images, that of CUB-200-2011, or a csv or parquet table with
image, class_name and split. Lambda is chosen by leave-one-out on the training images; the held-out
split is used once, at the end.
"""

import argparse

from ctrace.carrot.diffusion import READOUTS
from ctrace.carrot.pipeline import Carrot
from ctrace.stats import bootstrap
from ctrace.world.datasets import Splits, aviary_splits
from ctrace.world.layouts import read_splits
from ctrace.world.models import load_model
from ctrace.world.tokens import TimmViTPatchBackbone


def parse(arguments=None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ctrace.carrot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, help="'aviary', a folder, a csv or a parquet file")
    add("--held-out", default="test", choices=("test", "val"), help="the split to test on")
    add("--model", required=True, help="a timm token model, or a bundled one: aviary-vit-0")
    add("--weights", default="auto", help="auto, pretrained, random, or a file")
    add("--t", type=float, default=2.0, help="diffusion time; 0 leaves the graph out")
    add("--readout", default="degree", choices=READOUTS)
    add("--lam", type=float, help="penalty per training image; by leave-one-out if not given")
    add("--cache", help="folder for embeddings")
    add("--explain", type=int, nargs="*", default=[], help="numbers of held-out images")
    add("--train", type=int, default=280, help="training birds of the aviary")
    add("--test", type=int, default=140, help="test birds of the aviary")
    add("--unreadable", default="raise", choices=("raise", "report"))
    add("--device")
    return parser.parse_args(arguments)


def read_data(args: argparse.Namespace, size: int) -> Splits:
    """The data that ``--data`` names: the aviary, folders or a table."""
    if args.data == "aviary":
        return aviary_splits(args.train, args.test, size=size)
    needs = ("train", args.held_out)
    return read_splits(args.data, size, unreadable=args.unreadable, needs=needs)


def describe(carrot: Carrot, data: Splits, held_out: str, index: int) -> None:
    """One held-out image in words: what was said, which training images it rests on, where in the
    picture.
    """
    image, label = data[held_out][index]
    why, train = carrot.explain(image), data["train"]
    said = f"{data.classes[why.target]} (is {data.classes[label]}), logit {why.score:.3f}"
    print(f"\n{data[held_out].names[index]}: {said}")
    for word, chosen in (("helpful", why.helpful(3)), ("harmful", why.harmful(3))):
        effects = [
            f"{train.names[i]} ({data.classes[int(train.labels[i])]}) {why.leave_one_out[i]:+.4f}"
            for i in chosen
        ]
        print(f"  {word}, logit without it: {'; '.join(effects)}")
    drop, (h, w) = why.region_removal.max(), why.regions.grid_hw
    row, column = divmod(int(why.on_grid(why.region_removal).argmax()), w)
    print(f"  most missed region: row {row}, column {column} of {h} x {w}, {drop:+.4f}")


def main(arguments=None) -> None:
    """From data to accuracy, with intervals, and to the explanations that were asked for."""
    args = parse(arguments)
    model = load_model(args.model, args.weights, args.device)
    data = read_data(args, model.info.input_size[1])
    print(data)
    carrot = Carrot(TimmViTPatchBackbone(model), args.t, args.readout, args.lam)
    carrot.fit(data["train"], num_classes=len(data.classes), cache=args.cache)
    if path := carrot.path:
        edge = ", at the edge of the grid" if path.at_edge else ""
        accuracy = float(path.accuracy[path.squared_error.argmin()])
        print(f"lam {path.best:.1e} by leave-one-out{edge}; leave-one-out accuracy {accuracy:.3f}")
    test = carrot.embeddings(data[args.held_out], args.cache)
    right = (carrot.head.predict(test.G).argmax(1) == test.labels).double()
    print(f"accuracy on the {args.held_out} split {bootstrap(right)}")
    for index in args.explain:
        describe(carrot, data, args.held_out, index)


if __name__ == "__main__":
    main()
