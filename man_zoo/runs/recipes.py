"""The configs and sweeps that come with the library, by name: ``cifar10/resnet32_man_dgl_k16``."""

from pathlib import Path

from ..console import UserError
from ..messages import unknown

_PACKAGE = Path(__file__).parents[1]
# A wheel carries them inside the package.
RECIPES = next(
    (folder for folder in (_PACKAGE / "_recipes", _PACKAGE.parent / "recipes") if folder.is_dir()),
    _PACKAGE.parent / "recipes",
)


def find_config(name: str) -> Path:
    """A YAML file of flags: its path, or its name among the configs, without ``.yaml``.

    Raises:
        UserError: If there is neither.
    """
    return _find(name, "configs")


def find_sweep(name: str) -> Path:
    """A sweep file: its path, or its name among the sweeps, without ``.yaml``.

    Raises:
        UserError: If there is neither.
    """
    return _find(name, "sweeps")


def _find(name: str, kind: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    folder = RECIPES / kind
    known = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"{name}: no such file.")
    raise UserError(str(unknown(f"config or file {name!r}, no".partition(",")[0], name, known)))
