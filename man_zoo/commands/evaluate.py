"""``man-zoo evaluate MODEL``: what weights can do on a data set."""

import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from sklearn.metrics import classification_report
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..console import Parser, UserError, exit_status, output_file, table, user_errors
from ..data import LoaderInfo, add_data_args, create_loaders
from ..local_model import LocalModel
from ..messages import unknown
from ..parallel.processes import on_cpu, share_of_cores
from ..runs.config import read_args
from ..runs.folder import ARGS
from ..runs.metadata import load_metadata
from ..runs.model import load_run
from ..runs.untrusted import blaming_files_of
from ..spec import CLASSIFICATION
from ..tasks import Classification, Task
from ..tasks.pictures import save_picture
from ..training.evaluate import Loader, evaluate
from ..training.report import percentages
from ..weights import CONFIG

Forward = Callable[[Tensor], list[Tensor]]

DRAWN = 8  # images
_PIXELS = ("mean", "std")
_PREPROCESSING = ("input_size", *_PIXELS, "interpolation", "crop_pct")


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(prog=program, description="Evaluate weights on a data set.", allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a zoo name, hf-hub:ORG/NAME, an exported folder, or a run")
    add("--exits", action="store_true", help="also of every auxiliary; a run has them")
    add("--checkpoint", default="last", help="of a run: last (default), best, or a name")
    add("--picture", type=output_file, metavar="FILE", help=f"draw {DRAWN} of the images, of "
        "segmentation or detection: what is true beside what is predicted")  # fmt: skip
    add("--mixed-precision", choices=("no", "bf16", "fp16"), help="accelerate's by default")
    add_data_args(parser)
    parser.set_defaults(seed=0)
    return parser


def parse_args(argv: Sequence[str] | None = None, program: str = "man-zoo evaluate") -> Namespace:
    """Flags; for a run the data are its own unless flags say otherwise.

    Raises:
        UserError: For flags that are not understood.
    """
    parser = build_parser(program)
    given = parser.parse_args(argv, Namespace(batch_size=None))
    if _is_run(given.model):
        run = vars(read_args(Path(given.model)))
        # The test split, whatever part of the training images the run was validated on.
        ours = {"model", "picture", "exits", "checkpoint", "mixed_precision", "val_holdout"}
        if given.batch_size is not None:  # -b counts, whatever the run was validated with
            ours.add("validation_batch_size")
        parser.set_defaults(**{k: v for k, v in run.items() if k in vars(given) and k not in ours})
    return parser.parse_args(argv)


def evaluate_weights(args: Namespace) -> dict[str, Any]:
    """Evaluate as the flags say, and print it.

    Returns:
        The task's scores, ``count``, ``images_per_second``, ``exits`` (the main score of every
        block; of the network alone without ``--exits``), and ``report``, every class as text: for
        classification sklearn's precision, recall and F1.

    Raises:
        UserError: For weights or data that are not there or do not fit each other.
    """
    with user_errors(ValueError, OSError, RuntimeError):
        accelerator = Accelerator(cpu=on_cpu(), mixed_precision=args.mixed_precision)
        if accelerator.device.type == "cpu":
            torch.set_num_threads(share_of_cores())
        model = _load(args)
        config = _preprocess_as_trained(args, model)
        args.validation_batch_size = args.validation_batch_size or args.batch_size
        # The training loader is not used, and not to complain of few or small images.
        args.batch_size, args.no_aug = 1, True
        _, loader, data = create_loaders(args, accelerator, {"crop_mode": config["crop_mode"]})
        dense = args.task != CLASSIFICATION
        if data.num_classes > model.num_classes or (dense and data.num_classes < model.num_classes):
            raise ValueError(
                f"{args.model} knows {model.num_classes} classes, but {data.name} has "
                f"{data.num_classes}; expected data of {model.num_classes} classes."
            )
        _check_size(model, data)
    model = model.eval().to(accelerator.device, memory_format=torch.channels_last)
    forward = model.forward_exits if args.exits else lambda images: [model(images)]
    task: Task = getattr(model, "task", Classification(model.num_classes))
    if args.picture and task.draw is None:
        raise UserError("There is nothing to draw of the class of an image.")
    run = partial(evaluate, accelerator, task, outputs=len(model.blocks) if args.exits else 1)
    started = time.perf_counter()
    kept: list[tuple[Tensor, Tensor]] = []
    if isinstance(task, Classification):
        result = _with_report(run, forward, loader, data)
    else:
        result = run(forward, _keeping(loader, data.val_count, kept) if args.picture else loader)
        result["report"] = _scores_of_classes(result, data)
    result["images_per_second"] = result["count"] / (time.perf_counter() - started)
    print(_render(args, result, data, model, task))
    if args.picture:
        _draw(args.picture, task, model, kept, data)
    return result


def _with_report(
    run: Callable[..., dict[str, Any]], forward: Forward, loader: Loader, data: LoaderInfo
) -> dict[str, Any]:
    """What an evaluation finds, and sklearn's report on what passes through it."""
    predictions: list[Tensor] = []
    targets: list[Tensor] = []

    def predict(images: Tensor) -> list[Tensor]:
        outputs = forward(images)
        predictions.append(Classification.ranked(outputs[-1])[:, 0])
        return outputs

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for images, target in loader:
            targets.append(target)
            yield images, target

    result = run(predict, batches())
    return result | {"report": _per_class(torch.cat(targets), torch.cat(predictions), data)}


def _keeping(loader: Loader, count: int, kept: list[tuple[Tensor, Tensor]]) -> Loader:
    """The batches of ``count`` images, some of which are kept, far from each other."""
    wanted = min(DRAWN, count)
    chosen = [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
    seen = 0
    for images, target in loader:
        kept += [
            pair for i, pair in enumerate(zip(images, target, strict=True), seen) if i in chosen
        ]
        seen += len(images)
        yield images, target


@torch.no_grad()
def _draw(
    path: Path, task: Task, model: nn.Module, kept: list[tuple[Tensor, Tensor]], data: LoaderInfo
) -> None:
    assert task.draw is not None
    images, target = (torch.stack(part) for part in zip(*kept, strict=True))
    columns = [target.cpu(), task.drawable(model(images).cpu())]
    save_picture(task.draw(images.cpu(), columns, data.names, data.mean, data.std), path)


def _scores_of_classes(result: dict[str, Any], data: LoaderInfo) -> str:
    """A table of the scores that every class has of its own."""
    of_classes = {
        key: [f"{score:.2f}" for score in scores]
        for key, scores in result.items()
        if isinstance(scores, list) and key != "exits"
    }
    return table(["class", *of_classes], list(zip(data.names, *of_classes.values(), strict=True)))


@torch.no_grad()
def _check_size(model: nn.Module, data: LoaderInfo) -> None:
    size = "{} x {}".format(*data.input_size[1:])
    with user_errors(AssertionError, RuntimeError, about=f"The model takes no images of {size}"):
        model.eval()(torch.zeros(1, *data.input_size))


def _is_run(model: str) -> bool:
    return (Path(model) / ARGS).is_file()


def _load(args: Namespace) -> Any:
    """The network with its weights; a LocalModel with auxiliaries for ``--exits``."""
    if _is_run(args.model):
        return _load_run(Path(args.model), args.checkpoint, args.exits)
    if args.exits:
        raise UserError(
            "--exits needs auxiliaries, and exported weights have none; expected a run folder."
        )
    folder = (Path(args.model) / CONFIG).is_file()
    name = f"local-dir:{args.model}" if folder else args.model
    if not (re.search("[:/]", name) or timm.is_model(name)):
        raise unknown("model", name, timm.list_models())
    # What the folder or repository of someone else holds can fail in any way.
    with user_errors(Exception, about=args.model), blaming_files_of(name):
        return timm.create_model(name, pretrained=True)


def _load_run(run: Path, checkpoint: str, exits: bool) -> LocalModel:
    model = load_run(run, checkpoint, auxiliaries=exits)
    if not all(auxiliary.classifies for auxiliary in model.auxiliaries):
        raise UserError("--exits needs auxiliaries that classify; these learn by contrast.")
    return model


def _preprocess_as_trained(args: Namespace, model: nn.Module) -> dict[str, Any]:
    """Let the weights say what flags leave open, before the data set does; all that they say."""
    given = any((args.input_size, args.img_size, args.in_chans))
    if _is_run(args.model):
        config = vars(load_metadata(Path(args.model)).data)
    else:
        config = resolve_model_data_config(model)
    for key in _PREPROCESSING if args.task == CLASSIFICATION else _PIXELS:
        if getattr(args, key) is None and not (key == "input_size" and given):
            setattr(args, key, config[key])
    return config


def _per_class(target: Tensor, predicted: Tensor, data: LoaderInfo) -> str:
    return classification_report(
        target.cpu(),
        predicted.cpu(),
        labels=range(data.num_classes),
        target_names=data.names,
        digits=4,
        zero_division=0,
    )


def _render(
    args: Namespace, result: dict[str, Any], data: LoaderInfo, model: Any, task: Task
) -> str:
    lines = [
        f"{args.model} on {data.name}, {result['count']} images",
        f"{', '.join(percentages(task, result))}, loss "
        f"{result['loss']:.4f}, {result['images_per_second']:.0f} images/s",
        "",
        result["report"],
    ]
    if args.exits:
        tops = enumerate(result["exits"])
        rows = [(f"{j + 1}  {model.block_name(j)}", f"{score:.2f}") for j, score in tops]
        lines.append(table(("block", f"{task.percent[task.main_score]} %"), rows))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, program: str = "man-zoo evaluate") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: evaluate_weights(parse_args(argv, program)))


if __name__ == "__main__":
    sys.exit(main())
