"""A timm backbone and its local blocks: trained block by block, used like any timm model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from .auxiliary import MomentumLink, MomentumUnit
from .auxiliary.auglocal import final_cuts
from .auxiliary.build import build_auxiliaries
from .auxiliary.momentum import first_units
from .families import Units, list_units
from .local_block import LocalBlock
from .micro_batches import check_micro_batches
from .recompute import UNITS, choose_recompute
from .spec import LocalSpec
from .split import block_ranges, choose_cuts
from .step import LocalOutput, local_step
from .undecayed import undecayed_names


class LocalModel(nn.Module):
    """A backbone with auxiliaries: ``local_step`` trains it, ``forward`` is the plain backbone.

    Parameters live in ``backbone`` (exactly timm's) and in ``auxiliaries``; ``blocks`` are views on
    both, to be wrapped or compiled at will, and ``links`` the momentum links between them. What
    this class does not define (``forward_features``, ``num_features``, ``pretrained_cfg``, ...) is
    the backbone's.

    Args:
        backbone: An unmodified timm model.
        spec: Method, K, cuts and settings.
        input_size: ``(channels, height, width)`` of the images that the auxiliaries are built for.
        auxiliaries: Whether to build the auxiliaries. Without them the model cannot be trained
            locally, but has no parameter that is not the backbone's.
        criterion: Classification loss ``(logits, target) -> scalar`` of the head and of every
            auxiliary that classifies; cross-entropy by default.

    Raises:
        ValueError: For a family that cannot be split, an impossible K, a cut that does not exist.
    """

    backbone: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Any,
        spec: LocalSpec,
        *,
        input_size: tuple[int, int, int],
        auxiliaries: bool = True,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.input_size = input_size
        self.trainable = auxiliaries
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.auxiliaries = nn.ModuleList()
        self.checkpointing = False
        for name in ("mean", "std"):
            value = _per_channel(backbone.pretrained_cfg[name], input_size[0])
            self.register_buffer(name, value, persistent=False)
        self._build()

    def _build(self) -> None:
        """Cuts, auxiliaries, blocks and links for the backbone as it is now."""
        units = list_units(self.backbone)
        spec = self.spec
        self.unit_names = units.names
        self.cuts = choose_cuts(spec.backbone, units.names, spec.k, spec.cuts)
        if spec.base == "auglocal":
            self.cuts = final_cuts(self.cuts, len(units), **spec.head_settings)
        recompute = choose_recompute(spec.recompute, units.names, units.modules, len(self.cuts))
        # Plain lists: parameters are registered once, in backbone and auxiliaries.
        self.blocks: list[LocalBlock] = []
        self.links: list[MomentumLink] = []
        if not self.trainable:
            return
        reference = next(self.backbone.parameters())
        auxiliaries = build_auxiliaries(
            self.backbone,
            units,
            self.cuts,
            spec,
            self.input_size,
            self.backbone.num_classes,
            self.criterion,
            recompute[1],
        )
        self.auxiliaries = nn.ModuleList(auxiliaries).to(reference.device, reference.dtype)
        self.auxiliaries.train(self.training)
        ranges = block_ranges(self.cuts, len(units))
        self.blocks = self._local_blocks(units, ranges)
        count = spec.momentum.momentum_units if spec.momentum else 0
        self.links = [
            MomentumLink(first_units(units, following, count), auxiliary.momentum)
            for following, auxiliary in zip(ranges[1:], self.auxiliaries, strict=True)
            if isinstance(auxiliary.momentum, MomentumUnit) and auxiliary.momentum.follows
        ]

    def _local_blocks(self, units: Units, ranges: Sequence[range]) -> list[LocalBlock]:
        outputs = [*self.auxiliaries, units.head]
        names = self.no_weight_decay()
        undecayed = [p for name, p in self.named_parameters() if name in names]
        return [
            LocalBlock(
                [units.modules[i] for i in own],
                output,
                self.criterion,
                undecayed,
                recompute,
            )
            for own, output, recompute in zip(
                ranges, outputs, self._recomputed(units, ranges), strict=True
            )
        ]

    def _recomputed(self, units: Units, ranges: Sequence[range]) -> list[dict[int, str]]:
        """Of every block, modes of the units that are recomputed."""
        every = UNITS if self.checkpointing else self.spec.recompute
        chosen, _ = choose_recompute(every, units.names, units.modules, len(self.cuts))
        return [
            {
                i - own.start: chosen[i]
                for i in own
                if i in chosen and not _checkpoints_itself(units.modules[i])
            }
            for own in ranges
        ]

    # Training -------------------------------------------------------------------------------------

    def local_step(
        self,
        images: Tensor,
        target: Tensor,
        *,
        blocks: Sequence[Callable[..., Any]] | None = None,
        micro_batches: int = 1,
        **options: Any,
    ) -> LocalOutput:
        """Train on one batch, block by block.

        Without ``step=`` the gradients stay in ``.grad``, for one optimizer over all parameters.

        Args:
            images: Normalised images ``(B, C, H, W)``.
            target: Class indices ``(B,)`` or probabilities ``(B, classes)``.
            blocks: The model's blocks, wrapped (DDP, compiled); as they are by default.
            micro_batches: Slices of the batch that each block runs one after the other before its
                update: less memory, and the same training where images of a batch meet nowhere
                (with BatchNorm it is ghost batch norm).
            options: ``backward``, ``step``, ``update_momentum``, ``late``, ``key``,
                ``accumulating`` of :func:`man_zoo.local_step`.

        Raises:
            RuntimeError: If the model was built without auxiliaries.
            ValueError: For images of a size that the auxiliaries do not take, and for micro-batches
                where a local loss compares the images of a batch with each other.
        """
        self._need_auxiliaries("local_step")
        self.check_size(images)
        self.check_micro_batches(micro_batches)
        return local_step(
            self.blocks if blocks is None else blocks,
            self.links,
            images,
            target,
            restored=self.restore(images),
            micro_batches=micro_batches,
            **options,
        )

    def restore(self, images: Tensor) -> Tensor | None:
        """The images un-normalised, values 0 to 1; ``None`` where no auxiliary looks at them."""
        if not any(auxiliary.needs_image for auxiliary in self.auxiliaries):
            return None
        return images * self.std + self.mean

    def forward_exits(self, images: Tensor) -> list[Tensor]:
        """Logits ``(B, classes)`` of every auxiliary and of the network, in order of the blocks.

        Raises:
            RuntimeError: If there are no auxiliaries, or they give no logits (contrast).
        """
        self._need_auxiliaries("forward_exits")
        if not all(auxiliary.classifies for auxiliary in self.auxiliaries):
            raise RuntimeError("These auxiliaries learn by contrast and give no class logits.")
        features, exits = images, []
        for block in self.blocks:
            features = block.units(features)
            exits.append(block.classify(features))
        return exits

    def forward_auxiliary(self, images: Tensor) -> list[Tensor]:
        """Logits ``(B, classes)`` of every auxiliary, in order of the blocks: K - 1 early exits.

        Raises:
            RuntimeError: If there are no auxiliaries, or they give no logits (contrast).
        """
        return self.forward_exits(images)[:-1]

    def block_name(self, j: int) -> str:
        """First and last unit of block ``j`` (from 0), e.g. ``layer1.0 to layer1.4``."""
        own = block_ranges(self.cuts, len(self.unit_names))[j]
        first, last = self.unit_names[own[0]], self.unit_names[own[-1]]
        return first if first == last else f"{first} to {last}"

    def _need_auxiliaries(self, what: str) -> None:
        if not self.trainable:
            raise RuntimeError(
                f"{what} needs auxiliaries, and {self.spec.name} was built without them; "
                "pass auxiliaries=True."
            )

    def check_size(self, images: Tensor) -> None:
        """Refuse images ``(B, C, H, W)`` that the auxiliaries do not take.

        Raises:
            ValueError: If they are of another size than the auxiliaries are built for.
        """
        (height, width), given = self.input_size[1:], images.shape[2:]
        any_size = all(auxiliary.any_size for auxiliary in self.auxiliaries)
        if not any_size and given != (height, width):
            raise ValueError(
                f"{self.spec.method} is built for {height}x{width} images and got "
                f"{given[0]}x{given[1]}; pass img_size= or call set_input_size."
            )

    def check_micro_batches(self, count: int) -> None:
        """Refuse so many slices of a batch where they would be another loss.

        Raises:
            ValueError: As :func:`man_zoo.micro_batches.check_micro_batches`.
        """
        compares = any(auxiliary.compares for auxiliary in self.auxiliaries)
        check_micro_batches(count, compares, self.spec.method)

    # timm's model interface -----------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of the plain backbone."""
        return self.backbone(images)

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """A new head for ``num_classes``, and new auxiliaries for the same task.

        The momentum units are built anew as well: they are copies of the backbone as it is now.
        """
        self.backbone.reset_classifier(num_classes, *args, **kwargs)
        self._build()

    def set_input_size(self, img_size: Any = None, *args: Any, **kwargs: Any) -> None:
        """Another size of the images, and new auxiliaries for it.

        A backbone that takes any size stays as it is.

        Args:
            img_size: Height and width, or one number for both, in pixels; ``None`` keeps them.
            args: The backbone's own, e.g. patch or window size.
            kwargs: The same by name.
        """
        if hasattr(self.backbone, "set_input_size"):
            self.backbone.set_input_size(img_size, *args, **kwargs)
        if img_size is not None:
            height, width = to_2tuple(img_size)
            self.input_size = (self.input_size[0], height, width)
        self._build()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every unit in backward, in ``local_step`` and in ``forward``.

        In ``local_step`` results stay bit-identical; in ``forward``, and within DenseNet's units,
        it is timm's own.

        Args:
            enable: ``False`` goes back to what ``recompute=`` said.
        """
        self.backbone.set_grad_checkpointing(enable)
        self.checkpointing = enable
        units = list_units(self.backbone)
        recomputed = self._recomputed(units, block_ranges(self.cuts, len(units)))
        for block, own in zip(self.blocks, recomputed, strict=self.trainable):
            block.recompute = own

    def group_matcher(self, coarse: bool = False) -> Any:
        """The backbone's parameter groups, under ``backbone.``."""
        groups = self.backbone.group_matcher(coarse=coarse)
        if callable(groups):
            return lambda name: groups(name.removeprefix("backbone."))
        return {name: _below_backbone(pattern) for name, pattern in groups.items()}

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's parameters without weight decay, and of their copies."""
        return undecayed_names(self.backbone, list_units(self.backbone), self.auxiliaries)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "backbone" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.backbone, name)


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    value = torch.tensor(values).view(-1, 1, 1)
    # An RGB mean for a grey or many-band image: its average.
    return value if len(value) == channels else value.mean(0, keepdim=True)


def _checkpoints_itself(unit: nn.Module) -> bool:
    return any(getattr(layer, "grad_checkpointing", False) for layer in unit.modules())


def _below_backbone(pattern: Any) -> Any:
    if isinstance(pattern, str):
        # A group, because a pattern may be one of several: "^conv1|bn1".
        return rf"^backbone\.(?:{pattern.replace('^', '')})"
    return [(_below_backbone(sub), *rest) for sub, *rest in pattern]
