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
from .micro_batches import check_micro_batches, need_images
from .recompute import UNITS, choose_recompute
from .spec import LocalSpec
from .split import block_ranges, choose_cuts
from .step import LocalOutput, local_step
from .tasks import Classification, Decoder, DenseNetwork, Task, head_on, new_decoder
from .undecayed import below_backbone, undecayed_names


class LocalModel(nn.Module):
    """A backbone with auxiliaries: ``local_step`` trains it, ``forward`` is the plain network.

    Parameters live in ``backbone`` (exactly timm's), in ``auxiliaries`` and, for a dense task, in
    ``decoder``; ``blocks`` are views on them, to be wrapped or compiled at will, and ``links`` the
    momentum links between them. What this class does not define (``forward_features``,
    ``num_features``, ``pretrained_cfg``, ...) is the backbone's.

    Args:
        backbone: An unmodified timm model.
        spec: Method, K, cuts and settings.
        input_size: ``(channels, height, width)`` of the images that the auxiliaries are built for.
        auxiliaries: Whether to build the auxiliaries. Without them the model cannot be trained
            locally, but has no parameter that is not the backbone's.
        criterion: Loss ``(prediction, target) -> scalar`` of the network and of every auxiliary
            that predicts; the task's by default.
        task: What is learnt; classification into the backbone's classes by default.

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
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.input_size = input_size
        self.trainable = auxiliaries
        self.task: Task = task or Classification(backbone.num_classes)
        self.criterion = criterion or self.task.criterion()
        self.decoder = self._new_decoder()
        self.auxiliaries = nn.ModuleList()
        self.checkpointing = False
        for name in ("mean", "std"):
            value = _per_channel(backbone.pretrained_cfg[name], input_size[0])
            self.register_buffer(name, value, persistent=False)
        self._build()

    def _new_decoder(self) -> Decoder | None:
        decoder = new_decoder(self.task, self.backbone, self.input_size)
        reference = next(self.backbone.parameters())
        return decoder and decoder.to(reference.device, reference.dtype).train(self.training)

    def _build(self) -> None:
        """Cuts, auxiliaries, blocks and links for the backbone as it is now."""
        units = list_units(self.backbone)
        spec = self.spec
        self.unit_names = units.names
        self.cuts = choose_cuts(spec.backbone, units.names, spec.k, spec.cuts, self.task.name)
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
            self.task,
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
        taps = () if self.decoder is None else self.decoder.taps
        outputs = [*self.auxiliaries, head_on(units, self.decoder)]
        names = self.no_weight_decay()
        undecayed = [p for name, p in self.named_parameters() if name in names]
        return [
            LocalBlock(
                [units.modules[i] for i in own],
                output,
                self.criterion,
                undecayed,
                recompute,
                [i - own.start for i in taps if i in own],
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
            target: Of the task, e.g. class indices ``(B,)`` or probabilities ``(B, classes)``.
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
        need_images(self.task.least_images, len(images), micro_batches)
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
        """Predictions of every auxiliary and of the network, in order of the blocks.

        They are logits ``(B, classes)``, or those of a dense task, at the size of the images.

        Raises:
            RuntimeError: If there are no auxiliaries, or they give no logits (contrast).
        """
        self._need_auxiliaries("forward_exits")
        if not all(auxiliary.classifies for auxiliary in self.auxiliaries):
            raise RuntimeError("These auxiliaries learn by contrast and give no class logits.")
        features: Any = images
        exits = []
        for block in self.blocks:
            features = block.run_units(features)
            exits.append(self.task.to_image(block.classify(features), to_2tuple(images.shape[2:])))
        return exits

    def forward_auxiliary(self, images: Tensor) -> list[Tensor]:
        """Predictions of every auxiliary, in order of the blocks: K - 1 early exits.

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

    @property
    def network(self) -> Any:
        """What is used in the end: the backbone, or for a dense task the decoder on it."""
        if self.decoder is None:
            return self.backbone
        return DenseNetwork(self.backbone, self.decoder, self.task, self.checkpointing)

    @property
    def num_classes(self) -> int:
        """Classes of the task."""
        return self.task.num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of the plain backbone, or a dense prediction of the images."""
        return self.network(images)

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """A new head or decoder for ``num_classes``, and new auxiliaries for the same task.

        The momentum units are built anew as well: they are copies of the backbone as it is now.
        """
        if not self.task.dense:
            self.backbone.reset_classifier(num_classes, *args, **kwargs)
        self.task = self.task.with_classes(num_classes)
        self.decoder = self._new_decoder()
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
        return below_backbone(self.backbone.group_matcher(coarse=coarse))

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
