"""Two things a network can be asked about images of yours.

    python -m ctrace.look statistics --data imagenet/ --model resnet50 --out resnet50.safetensors
    python -m ctrace.look pairs --pairs lfw/pairs.txt --images lfw/ --model resnet50

The first goes once over labelled images and keeps what ParchGrad needs: how strongly each channel
fires for each class. The second scores pairs of images by the cosine of their embeddings.
"""

import argparse
import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.stats import accuracy_by_fold, bootstrap, equal_error_rate
from ctrace.world.datasets import decode, few
from ctrace.world.layouts import lfw_pairs, read_splits
from ctrace.world.models import ModelInfo, load_model

AT_ONCE = 64  # images


def parse(arguments=None) -> argparse.Namespace:
    """The options of the command line."""
    form = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m ctrace.look", **form)
    commands = parser.add_subparsers(dest="command", required=True)
    statistics = commands.add_parser("statistics", help="channel statistics for ParchGrad")
    statistics.add_argument("--data", required=True, help="a folder, a csv or a parquet file")
    statistics.add_argument("--split", default="train", choices=("train", "val", "test"))
    statistics.add_argument("--out", required=True, help="file for ChannelStatistics.load")
    statistics.add_argument("--unreadable", default="raise", choices=("raise", "report"))
    pairs = commands.add_parser("pairs", help="verification by cosine similarity")
    pairs.add_argument("--pairs", required=True, help="LFW's pairs.txt")
    pairs.add_argument("--images", required=True, help="folder of name/name_0001.jpg")
    pairs.add_argument("--embedding", default="pooled", choices=("pooled", "output"))
    pairs.add_argument("--out", help="csv file for the cosine of each pair")
    for command in (statistics, pairs):
        command.add_argument("--model", required=True, help="a timm model, or a bundled one")
        command.add_argument("--weights", default="pretrained", help="pretrained, random or a file")
        command.add_argument("--device")
    return parser.parse_args(arguments)


def collect_statistics(args: argparse.Namespace) -> None:
    """One pass over a split, into one file."""
    model = load_model(args.model, args.weights, args.device)
    options = {"unreadable": args.unreadable, "needs": (args.split,)}
    data = read_splits(args.data, model.info.input_size[1], **options)
    numbers, words = class_numbers(model.info, data.classes)
    print(f"{data}; classes are numbered {words}")
    loader = DataLoader(data[args.split], AT_ONCE)
    batches = ((model.info.preprocess(images), numbers[labels]) for images, labels in loader)
    k = max(len(model.info.classes or ()), int(numbers.max()) + 1)
    found = ChannelStatistics.collect(model, batches, num_classes=k)
    found.save(args.out)
    testable, seen = int(found.testable().sum()), int((found.count > 0).sum())
    print(f"{sum(found.layers.values())} channels of {len(found.layers)} layers, {seen} classes")
    print(f"{testable} of them with two images or more, as a test needs; written to {args.out}")


def class_numbers(info: ModelInfo, classes: tuple[str, ...]) -> tuple[Tensor, str]:
    """The model's number of each class of a data set, and in words where it comes from: the name of
    the class or its WordNet id, or the data set itself when the model has none of these names.

    Raises:
        ValueError: some classes are the model's and some are not.
    """
    known = {name: i for i, name in enumerate(info.classes or ())}
    wordnet = ImageNetInfo("imagenet-1k")
    if info.classes == tuple(wordnet.label_descriptions()):
        known |= {name: i for i, name in enumerate(wordnet.label_names())}
    if strange := [name for name in classes if name not in known]:
        if len(strange) < len(classes):
            message = f"{len(strange)} of {len(classes)} classes are not the model's"
            raise ValueError(f"{message}: {few(strange)}. Rename these folders or rows.")
        return torch.arange(len(classes)), f"as in the data, 0 is {classes[0]}"
    return torch.tensor([known[name] for name in classes]), "as in the model"


def score_pairs(args: argparse.Namespace) -> None:
    """Cosines of all pairs, and how well they tell one from two."""
    model = load_model(args.model, args.weights, args.device)
    pairs = lfw_pairs(args.pairs, args.images)
    rows = embed(model, pairs.files, args.embedding)
    cosine = F.cosine_similarity(rows[pairs.first], rows[pairs.second])
    n, size = rows.shape
    print(f"{len(cosine)} pairs of {n} images, embeddings of {size} numbers ({args.embedding})")
    error = equal_error_rate(cosine[pairs.same], cosine[~pairs.same])
    print(f"equal error rate {error:.3f}")
    if folds := int(pairs.fold.max()):
        right = bootstrap(accuracy_by_fold(cosine, pairs.same, pairs.fold))
        print(f"accuracy over {folds + 1} folds, each at the threshold of the others {right}")
    if args.out:
        with open(args.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("first", "second", "same", "fold", "cosine"))
            names = [Path(path).name for path in pairs.files]
            for i, j, *rest in zip(pairs.first, pairs.second, pairs.same, pairs.fold, cosine):
                writer.writerow((names[i], names[j], *(value.item() for value in rest)))


@torch.no_grad()
def embed(model: nn.Module, files, embedding: str) -> Tensor:
    """Embeddings ``(n, d)``, on the CPU: what a timm network pools before its classifier, or its
    output.

    Raises:
        ValueError: an image that cannot be read, or a network that does not say what it pools.
    """
    pooled = embedding == "pooled"
    if pooled and not hasattr(model, "forward_head"):
        raise ValueError(f"{model.info.name} has no forward_head. Use --embedding output.")
    rows, like = [], next(model.parameters())
    for part in tqdm(range(0, len(files), AT_ONCE), desc="embedding", unit="batch"):
        images = torch.stack([_read(file, model.info) for file in files[part : part + AT_ONCE]])
        x = model.info.preprocess(images).to(like)
        tokens = model.forward_features(x) if pooled else None
        rows.append(model.forward_head(tokens, pre_logits=True) if pooled else model(x))
    return torch.cat(rows).float().cpu()


def _read(file: Path, info: ModelInfo) -> Tensor:
    try:
        return decode(file.read_bytes, info.input_size[1]).float() / 255
    except Exception as error:  # decoders raise many types for a bad file
        raise ValueError(f"{file} cannot be read: {error}") from error


def main(arguments=None) -> None:
    """The command that is named."""
    args = parse(arguments)
    {"statistics": collect_statistics, "pairs": score_pairs}[args.command](args)


if __name__ == "__main__":
    main()
