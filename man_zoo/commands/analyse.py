"""``man-zoo analyse RUN...``: look into trained networks, block by block."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..analysis.cka import FEWEST, similarity
from ..analysis.images import draw_images
from ..analysis.maps import feature_maps
from ..analysis.pictures import PICTURES, draw_feature_maps
from ..analysis.report import numbers, render, save_maps
from ..analysis.runs import Run, common_depths, load_runs
from ..analysis.separability import separability
from ..console import Parser, UserError, exit_status, user_errors, write_json
from ..console.numbers import non_negative, positive, seed
from ..data import Split
from ..parallel.processes import on_cpu
from ..runs.metadata import machine
from ..tasks import Classification
from ..training.evaluate import Loader, evaluate_exits

IMAGES_SHOWN = 3


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(
        prog=program, description="Look into trained networks, block by block.", allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders, all of one backbone")
    add("--labels", nargs="+", metavar="TEXT", help="what to call the runs; model and seed if not")
    add("--output", type=Path, default=Path("analysis"), metavar="DIR", help="default: analysis")
    add("--checkpoint", default="last", help="of every run: last (default), best, or a name")
    add("--train-images", type=positive, default=4000, metavar="N",
        help="training images that probes are fitted on (default 4000)")  # fmt: skip
    add("--val-images", type=positive, default=2000, metavar="N",
        help="test images that everything is measured on (default 2000)")  # fmt: skip
    add("-b", "--batch-size", type=positive, default=250, metavar="N", help="default: 250")
    add("--seed", type=seed, default=0, help="of the draw of images (default 0)")
    add("--data-dir", metavar="DIR", help="where the data are now; default: as in the first run")
    add("-j", "--workers", type=non_negative, metavar="N",
        help="processes that read; default: the run's")  # fmt: skip
    return parser


def analyse(args: Namespace) -> dict[str, Any]:
    """Analyse as the flags say; print tables, write pictures and their numbers.

    Returns:
        What ``analysis.json`` holds.

    Raises:
        UserError: For runs that are not there or do not belong together, for data that are not
            there or too few.
    """
    with user_errors(ValueError, OSError, RuntimeError):
        accelerator = Accelerator(cpu=on_cpu(), mixed_precision="no")
        device = accelerator.device
        runs = load_runs(args.runs, device, labels=args.labels, checkpoint=args.checkpoint)
        images = _open_images(args, runs[0], device)
        args.output.mkdir(parents=True, exist_ok=True)
    depths = common_depths(runs)
    found = numbers(
        runs,
        depths,
        probes=[separability(run, depths, images) for run in runs],
        exits=[_exits(accelerator, run, images.val) for run in runs],
        cka=similarity(runs, depths, images.val),
    ) | {
        "data": runs[0].data.name,
        "train_images": images.train.count,
        "val_images": images.val.count,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "machine": machine(device),
    }
    write_json(args.output / "analysis.json", found)
    for name, draw in PICTURES.items():
        draw(found, args.output / name)
    _show_maps(runs, depths, found, images, args.output)
    print(f"{found['data']}, {found['val_images']} test images\n\n{render(found)}")
    print(f"\npictures and numbers: {args.output}")
    return found


def _open_images(args: Namespace, run: Run, device: torch.device) -> Split:
    given = {key: getattr(args, key) for key in ("data_dir", "workers")}
    flags = vars(run.args) | {key: value for key, value in given.items() if value is not None}
    images = draw_images(
        Namespace(**flags),
        run.data,
        args.train_images,
        args.val_images,
        batch_size=args.batch_size,
        seed=args.seed,
        device=device,
    )
    if min(args.batch_size, images.val.count) < FEWEST:
        raise UserError(
            f"CKA needs batches of {FEWEST} images; expected a larger --batch-size or --val-images."
        )
    return images


def _exits(accelerator: Accelerator, run: Run, loader: Loader) -> list[float | None]:
    task = Classification(run.data.num_classes)
    bar = tqdm(loader, f"exits, {run.label}", leave=False)
    return evaluate_exits(accelerator, task, run.model, bar)["exits"]


def _show_maps(
    runs: Sequence[Run],
    depths: Sequence[int],
    found: dict[str, Any],
    images: Split,
    output: Path,
) -> None:
    normalised, target = (part[:IMAGES_SHOWN] for part in next(iter(images.val)))
    maps = [feature_maps(run, depths, normalised) for run in runs]
    first = runs[0]
    shown = (normalised * first.model.std + first.model.mean).clamp(0, 1).cpu()
    classes = first.data.class_names
    names = [classes[i] if classes else str(i) for i in target.tolist()]
    draw_feature_maps(found, shown, names, maps, output / "feature_maps.png")
    save_maps(runs, depths, shown, maps, output / "feature_maps.npz")


def main(argv: Sequence[str] | None = None, program: str = "man-zoo analyse") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: analyse(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
