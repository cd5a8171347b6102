"""Plans: the cuts of least memory, the fastest split within a budget, the fastest processes."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from timm.layers import Format
from torch import Tensor

from ..auxiliary.auglocal import final_cuts
from ..auxiliary.build import need_units_to_copy
from ..auxiliary.momentum import FORMS
from ..families import list_units
from ..recompute import choose_recompute, modes_of, recompute_names
from ..spec import END_TO_END, LocalSpec, make_spec
from ..split import choose_cuts
from ..tasks import Classification, Task, need_no_taps
from .blocks import Cost, Split, cost_of, most_blocks
from .chain import each_limit
from .cost import CostModel
from .divisible import divisible
from .images import with_image_side
from .lasting import resident
from .plan import Plan
from .refusals import above_floor, above_least
from .search import AUXILIARY_MODES, MOST_BLOCKS, Choices, cheapest, floors, least
from .seconds import Clock
from .setting import Setting
from .spread import Spread

BALANCED = "balanced"


class Planner:
    """Plans for one backbone, method and training setting; what is measured once is kept.

    Args:
        backbone: A timm model, on any device (``meta`` too); left as it is.
        name: Its timm name.
        method: Method name.
        keywords: The method's own.
        input_size: ``(channels, height, width)`` of the images.
        setting: Batch, optimizer, precision.
        criterion: The task's loss by default.
        progress: Called after every piece that was measured.
        calibrate: Whether to time every piece on the device at hand, so that plans keep seconds
            small instead of arithmetic; the backbone then has real weights.
        task: What is learnt; classification into the backbone's classes by default.
    """

    def __init__(
        self,
        backbone: Any,
        name: str,
        method: str,
        keywords: Mapping[str, Any],
        input_size: tuple[int, int, int],
        setting: Setting,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        progress: Callable[[], object] = lambda: None,
        calibrate: bool = False,
        task: Task | None = None,
    ) -> None:
        self.progress = progress
        self.task = task or Classification(backbone.num_classes)
        self.clock = Clock(backbone, setting, input_size, self.task) if calibrate else None
        self.backbone, self.name, self.method = backbone, name, method
        self.keywords, self.input_size, self.setting = dict(keywords), input_size, setting
        self.criterion = criterion
        units = list_units(backbone)
        self.names, self.modules = units.names, units.modules
        self.tokens = units.layout.format is Format.NLC
        self._recompute = partial(choose_recompute, names=self.names, modules=self.modules)
        self._models: dict[str | None, CostModel] = {}
        self._end_to_end_cost: Cost | None = None

    def with_micro_batches(self, count: int) -> "Planner":
        """The same for so many slices of a batch."""
        setting = replace(self.setting, micro_batches=count)
        return self._changed(setting=setting, _end_to_end_cost=self._whole())

    @property
    def divisible(self) -> bool:
        """Whether a batch in slices is the same training as the whole one."""
        return divisible(self._model(self.forms[0]))

    def resized(self, batch_size: int | None = None, side: int | None = None) -> "Planner":
        """The same for another batch, or for square images of another side.

        Args:
            batch_size: Images a step; the same if left out.
            side: Height and width of the images, in pixels; the same if left out.

        Raises:
            ValueError: For a backbone whose weights fit one image size only.
        """
        other = self._changed()
        if batch_size is not None:
            other.setting = replace(self.setting, batch_size=batch_size)
        if side is not None:
            other.input_size = (self.input_size[0], side, side)
            other.backbone = with_image_side(self.backbone, self.name, side)
        return other

    def in_form(self, form: str | None) -> "Planner":
        """The same for one form of MAN; all forms if ``None``."""
        return self._changed(keywords=self.keywords | ({"form": form} if form else {}))

    def _changed(self, **attributes: Any) -> "Planner":
        other = copy.copy(self)
        vars(other).update({"_models": {}, "_end_to_end_cost": None} | attributes)
        return other

    # Costs ----------------------------------------------------------------------------------------

    @property
    def forms(self) -> tuple[str | None, ...]:
        """Forms of MAN that may be chosen between."""
        free = self.method.startswith("man_") and "form" not in self.keywords
        return FORMS if free else (None,)

    @property
    def _form(self) -> str | None:
        """The form that a budget chooses: the release's runs one more copy of the same units."""
        return "paper" if len(self.forms) > 1 else None

    def _spec(self, form: str | None, k: int = 2) -> LocalSpec:
        keywords = self.keywords | ({"form": form} if form else {})
        k = 1 if self.method == END_TO_END else k
        return make_spec(self.name, self.method, k, keywords, self.tokens, self.task.name)

    def _model(self, form: str | None) -> CostModel:
        if not self._models:
            self._models[form] = self._new_model(form, self.setting)
        if form not in self._models:
            first = next(iter(self._models.values()))
            self._models[form] = first.with_spec(self._spec(form))
        return self._models[form]

    def _new_model(self, form: str | None, setting: Setting) -> CostModel:
        about = self.backbone, self._spec(form), self.input_size, setting
        return CostModel(*about, self.criterion, self.progress, self.clock, self.task)

    def _whole(self) -> Cost:
        """Of the backbone trained end to end, the batch in one."""
        if self._end_to_end_cost is None:
            model = self._model(self.forms[0])
            if self.setting.micro_batches > 1:
                model = self._new_model(self.forms[0], replace(self.setting, micro_batches=1))
            self._end_to_end_cost = cost_of(model, Split())
        return self._end_to_end_cost

    def _plan(self, form: str | None, split: Split) -> Plan:
        model = self._model(form)
        spec = replace(
            self._spec(form, len(split.cuts) + 1),
            cuts=tuple(self.names[cut] for cut in split.cuts),
            recompute=recompute_names(self.names, split.units, split.auxiliaries),
        )
        return Plan(spec, self.names, split, cost_of(model, split), self._whole(), self.setting)

    # Plans ----------------------------------------------------------------------------------------

    def end_to_end(self, recompute: str | Sequence[str] | None = None) -> Plan:
        """The backbone as one block, units recomputed or not."""
        units, _ = self._recompute(recompute, auxiliaries=0)
        return self._end_to_end(Split(units=units))

    def _end_to_end(self, split: Split) -> Plan:
        plan = self._plan(self.forms[0], split)
        return replace(plan, spec=replace(plan.spec, method=END_TO_END, k=1, momentum=None))

    def cuts(
        self,
        k: int,
        cuts: str | Sequence[str] | None = None,
        recompute: str | Sequence[str] | None = None,
        form: str | None = None,
    ) -> Plan:
        """What given cuts cost.

        Raises:
            ValueError: For an impossible K, a cut or a part that does not exist, a block of fewer
                units than are copied.
        """
        indices = choose_cuts(self.name, self.names, k, cuts, self.task.name)
        spec = self._spec(form)
        if spec.base == "auglocal":
            indices = final_cuts(indices, len(self.names), **spec.head_settings)
        need_units_to_copy(list_units(self.backbone), indices, spec)
        units, auxiliaries = self._recompute(recompute, auxiliaries=len(indices))
        return self._plan(form, Split(indices, units, auxiliaries))

    def balanced(
        self, k: int, recompute: str | Sequence[str] | None = None, form: str | None = None
    ) -> Plan:
        """The cuts of least peak for K blocks.

        Args:
            k: Number of local blocks.
            recompute: As for given cuts; auxiliaries only all together.
            form: Form of MAN; the method's default if left out.

        Raises:
            ValueError: For an impossible K.
        """
        self._check_k(k)
        return self._plan(form, least(self._model(form), self._choices((k,), recompute or ())))

    def within(
        self,
        budget: int,
        k: int | None = None,
        recompute: str | Sequence[str] | None = None,
    ) -> Plan:
        """The least arithmetic within ``budget`` bytes: K, cuts, form and recomputation are chosen.

        Args:
            budget: Bytes for everything that lives during a step.
            k: Number of local blocks; free if left out.
            recompute: As for given cuts; free if left out.

        Raises:
            ValueError: If the budget cannot be met; says what the least is.
        """
        choices = self._choices(self._ks(k), recompute)
        self._refuse(budget, choices)
        split = cheapest(self._model(self._form), budget, choices)
        if split is not None:
            return self._plan(self._form, split)
        smallest = self._smallest(choices)
        # Where gradients accumulate, the search counts more of them than are ever there.
        if smallest.cost.peak > budget:
            fixed = resident(self._model(self._form))
            raise ValueError(above_least(self._who, budget, smallest, fixed))
        return smallest

    def smallest(self, k: int | None = None) -> Plan:
        """The least peak of all: K, cuts, form and recomputation are chosen."""
        return self._smallest(self._choices(self._ks(k), None))

    def _smallest(self, choices: Choices) -> Plan:
        return self._plan(self._form, least(self._model(self._form), choices))

    def spread(
        self,
        processes: int,
        k: int | None = None,
        limits: Sequence[int] = (),
        recompute: str | Sequence[str] | None = None,
        form: str | None = None,
    ) -> Plan:
        """The cuts with which the slowest of several processes is fastest.

        Args:
            processes: How many there are, each with one block or more.
            k: Number of local blocks; as few as fit if left out, because accuracy falls with it.
            limits: Bytes: one for every process, one for all, or none.
            recompute: As for given cuts; auxiliaries only all together.
            form: Form of MAN; the method's default if left out.

        Raises:
            ValueError: For an impossible K, fewer blocks or units than processes, another number
                of limits, one that cannot be met, overlap.
        """
        self._spec(form).need_whole_units("block parallelism")
        need_no_taps(self.task, self._model(form).taps)
        fewest = max(processes, 2)
        if k is not None:
            choose_cuts(self.name, self.names, k, "even")
        if processes > (k or len(self.names)):
            have = f"k={k}" if k else f"{self.name} has {len(self.names)} units"
            raise ValueError(f"{processes} processes need a block each, but {have}.")
        units, auxiliaries = self._recompute(recompute, auxiliaries=None)
        ways = Spread(self._model(form), each_limit(limits, processes), units, auxiliaries.get(0))
        ks = (k,) if k else range(fewest, min(max(fewest, MOST_BLOCKS), len(self.names)) + 1)
        chain = ways.cut(ks, self.names)
        cuts = tuple(cut for run in chain for cut in run.cuts)[:-1]
        every = dict.fromkeys(range(len(cuts)), auxiliaries[0]) if auxiliaries else {}
        return self._plan(form, Split(cuts, units, every))

    def checkpointed_within(self, budget: int) -> Plan | None:
        """End to end within ``budget`` bytes, units recomputed as needed; ``None`` if it cannot."""
        split = cheapest(self._model(self.forms[0]), budget, self._choices((1,), None))
        return self._end_to_end(split) if split is not None else None

    def front(self, form: str | None, *, local: bool = False, points: int = 10) -> list[Plan]:
        """The least arithmetic for one memory after another, from the least memory up.

        Args:
            form: Form of MAN.
            local: Whether to plan local blocks, or end to end with recomputation.
            points: How many budgets, evenly spread on a logarithmic scale up to end to end's.
        """
        form = form if local else self.forms[0]
        model, choices = self._model(form), self._choices(self._ks(None) if local else (1,), None)
        most, low = (cost_of(model, split).peak for split in (Split(), least(model, choices)))
        budgets = [round(low * (most / low) ** (i / (points - 1))) for i in range(points)]
        splits = [cheapest(model, budget, choices) for budget in budgets]
        make = (lambda split: self._plan(form, split)) if local else self._end_to_end
        return [make(split) for split in dict.fromkeys(splits) if split is not None]

    def _ks(self, k: int | None) -> tuple[int, ...]:
        if self.method == END_TO_END:
            return (1,)
        if k is not None:
            self._check_k(k)
            return (k,)
        self._check_k(2)
        return tuple(range(2, min(MOST_BLOCKS, most_blocks(self._model(self._form))) + 1))

    def _check_k(self, k: int) -> None:
        choose_cuts(self.name, self.names, k, "even")
        most = most_blocks(self._model(self._form))
        if k > most:
            raise ValueError(
                f"{self.name} cannot be cut into {k} blocks for {self.method}, because of what an "
                f"auxiliary needs of the units after it; k is from 1 to {most}."
            )

    def _choices(self, ks: tuple[int, ...], recompute: str | Sequence[str] | None) -> Choices:
        if recompute is None:
            free = tuple((None, *modes_of(module)) for module in self.modules)
            return Choices(ks, free, (None, *AUXILIARY_MODES))
        units, auxiliaries = self._recompute(recompute, auxiliaries=None)
        every = range(len(self.names))
        return Choices(ks, tuple((units.get(i),) for i in every), (auxiliaries.get(0),))

    def _refuse(self, budget: int, choices: Choices) -> None:
        """Raises ``ValueError`` where one unit alone is too much: no need to search."""
        model = self._model(self._form)
        for floor, i in floors(model, choices):
            if floor > budget:
                unit, fixed = None if i is None else self.names[i], resident(model)
                raise ValueError(above_floor(self._who, budget, floor, unit, fixed, self.setting))

    @property
    def _who(self) -> str:
        return f"{self.name} with {self.method}"
