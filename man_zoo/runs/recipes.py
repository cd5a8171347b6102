"""The configs and sweeps that come with the library, by name: ``cifar10/resnet32_man_dgl_k16``."""

from pathlib import Path

from ..console import UserError
from ..messages import unknown

PACKAGE = Path(__file__).parents[1]
# A wheel carries them inside the package.
RECIPES = next(
    (folder for folder in (PACKAGE / "_recipes", PACKAGE.parent / "recipes") if folder.is_dir()),
    PACKAGE.parent / "recipes",
)


def find_config(name: str) -> Path:
    """A YAML file of flags: its path, or its name among the configs, without ``.yaml``.

    Raises:
        UserError: If there is neither.
    """
    return _find("config", name)


def find_sweep(name: str) -> Path:
    """A sweep file: its path, or its name among the sweeps, without ``.yaml``.

    Raises:
        UserError: If there is neither.
    """
    return _find("sweep", name)


def _find(kind: str, name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"{name}: no such file.")
    folder = RECIPES / f"{kind}s"
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }
    if name not in files:
        raise UserError(str(unknown(kind, name, files)))
    return files[name]
