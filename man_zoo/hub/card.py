"""The model card of an export: what the weights are, how they were made, how to load them."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import model_entrypoint

from ..console import UserError, user_errors
from ..spec import CLASSIFICATION, WRAPPERS, base_method
from ..tasks import TASKS, Classification
from ..weights import CARD, CONFIG, DECODER, WEIGHTS, check_title
from .markdown import code, code_block, one_line, words

# Stands in a card for where its weights are, until they have a repository.
SOURCE = "local-dir:FOLDER"

_TEMPLATE = """---
{{ card_data }}
---
# {{ title }}

{{ architecture }} trained {{ how }} on {{ data }}.

{{ weights }} Auxiliaries of local training are left out.

| | |
| --- | --- |
| method | {{ method }} |
| K, local blocks | {{ k }} |
| blocks end after | {{ cuts }} |
| data set | {{ data }} |
| measured on | {{ validation }} that were not trained on |
{{ scores }}
| loss | {{ "%.4f" | format(metrics.loss) }} |
| epoch | {{ epoch }} |
| hardware | {{ hardware }} |
| training time | {{ "%.0f" | format(seconds) }} s |
| software | {{ software }} |
{% if labels %}
Classes, in order: {{ labels | join(", ") }}.
{% endif %}
## Load

{{ requirement }}

```python
{{ usage }}
```

`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` prepares an image. With
man_zoo, on as many local blocks as you like:

```python
import man_zoo

model = man_zoo.localize(
    "{{ source }}", "{{ method }}", k={{ k }}, pretrained=True, auxiliaries=True{{ keywords }}
){{ decoder }}
```
{% if by_name %}
Where man_zoo's index has them, the weights are
{{ by_name }}.
{% endif %}
## Train

{{ recipe }}

The metrics are those that this run logged.

## Citation

{% for entry in citations %}```bibtex
{{ entry }}
```
{% endfor %}
## Licence

The weights have the licence of man_zoo, Apache 2.0. {{ data_note }}
"""

_MAN = """@inproceedings{man,
  title = {Momentum Auxiliary Network for Supervised Local Learning},
  author = {Su, Junhao and Cai, Changpeng and Zhu, Feiyu and He, Chenghao and Xu, Xiaojie and
    Guan, Dongzhi and Si, Chenyang},
  booktitle = {ECCV},
  year = {2024},
  eprint = {2407.05623}, archivePrefix = {arXiv}
}"""
_CITATIONS = {
    "man": _MAN,
    "manpp": """@misc{manpp,
  title = {MAN++: Scaling Momentum Auxiliary Network for Supervised Local Learning in Vision Tasks},
  author = {Su, Junhao and Zhu, Feiyu and Shi, Hengyu and Han, Tianyang and Qiu, Yurui and
    Luo, Junfeng and Wei, Xiaoming and Gao, Jialin},
  year = {2025},
  eprint = {2507.16279}, archivePrefix = {arXiv}
}""",
    "overlap": """@inproceedings{loco,
  title = {{LoCo}: Local Contrastive Representation Learning},
  author = {Xiong, Yuwen and Ren, Mengye and Urtasun, Raquel},
  booktitle = {NeurIPS},
  year = {2020},
  eprint = {2008.01342}, archivePrefix = {arXiv}
}
@misc{backlink,
  title = {{BackLink}: Supervised Local Training with Backward Links},
  author = {Guo, Wenzhe and Fouda, Mohammed E. and Eltawil, Ahmed M. and Salama, Khaled N.},
  year = {2022},
  eprint = {2205.07141}, archivePrefix = {arXiv}
}""",
    "dgl": """@inproceedings{dgl,
  title = {Decoupled Greedy Learning of CNNs},
  author = {Belilovsky, Eugene and Eickenberg, Michael and Oyallon, Edouard},
  booktitle = {ICML},
  year = {2020},
  eprint = {1901.08164}, archivePrefix = {arXiv}
}""",
    "infopro": """@inproceedings{infopro,
  title = {Revisiting Locally Supervised Learning: an Alternative to End-to-end Training},
  author = {Wang, Yulin and Ni, Zanlin and Song, Shiji and Yang, Le and Huang, Gao},
  booktitle = {ICLR},
  year = {2021}
}""",
    "predsim": """@inproceedings{predsim,
  title = {Training Neural Networks with Local Error Signals},
  author = {N{\\o}kland, Arild and Eidnes, Lars Hiller},
  booktitle = {ICML},
  year = {2019},
  eprint = {1901.06656}, archivePrefix = {arXiv}
}""",
    "auglocal": """@inproceedings{auglocal,
  title = {Scaling Supervised Local Learning with Augmented Auxiliary Networks},
  author = {Ma, Chenxiang and Wu, Jibin and Si, Chenyang and Tan, Kay Chen},
  booktitle = {ICLR},
  year = {2024}
}""",
}
_OF_BOTH = (
    f"`{WEIGHTS}` has the weights of the backbone, `{DECODER}` those of the decoder, under "
    "torchvision's names."
)
_DECODER = f"""

# With {DECODER} of this repository:
from safetensors.torch import load_file

model.decoder.load_state_dict(load_file("{DECODER}"))"""
_DATA_NOTES = {
    "digits": "The digits are the test set of UCI's Optical Recognition of Handwritten Digits "
    "(CC BY 4.0), as scikit-learn carries it.",
    "cifar10": "The authors of CIFAR-10 state no licence; cite Krizhevsky, 2009.",
    "cifar100": "The authors of CIFAR-100 state no licence; cite Krizhevsky, 2009.",
    "svhn": "SVHN is for non-commercial use; cite Netzer et al., 2011.",
    "stl10": "STL-10 is made of ImageNet images; its authors state no licence.",
    "fashion_mnist": "Fashion-MNIST has the MIT licence (Zalando SE).",
}
_OTHER_DATA = "Whether they may be used also depends on the licence of the images, which the run "
_OTHER_DATA += "does not know."


def write_card(path: Path, metadata: dict[str, Any], architecture: str, labels: list[str]) -> None:
    """Write the card of weights.

    Args:
        path: The ``README.md``.
        metadata: As ``config.json`` has them under ``"man_zoo"``.
        architecture: timm name of the network.
        labels: Names of the classes, in order; empty if they have none.
    """
    title, machine = f"{metadata['name']}.{metadata['tag']}", metadata["machine"]
    software = f"man_zoo {metadata['version']}, torch {machine['torch']}, timm {machine['timm']}"
    local, task = metadata["k"] > 1, TASKS[metadata["task"]]
    # A backbone without a classifier gives features, whatever it has learnt to see.
    kind = "image-feature-extraction" if task.dense else "image-classification"
    accuracy = EvalResult(
        task_type=f"image-{task.name}",
        dataset_type=one_line(metadata["dataset"]),
        dataset_name=one_line(metadata["data"]),
        metric_type="accuracy" if task is Classification else task.main_score,
        metric_value=round(metadata["metrics"][task.main_score], 2),
    )
    card = ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="timm",
            pipeline_tag=kind,
            tags=[kind, "timm", "man_zoo", *(["local-learning"] * local)],
            model_name=one_line(title),
            eval_results=[accuracy],
        ),
        template_str=_TEMPLATE,
        title=words(title),
        by_name="" if task.dense else code(f'timm.create_model("{title}", pretrained=True)'),
        architecture=architecture,
        weights=_OF_BOTH if task.dense else "These are the weights of the backbone alone.",
        keywords="".join(f", {key}={value!r}" for key, value in metadata["task_keywords"].items()),
        decoder=_DECODER if task.dense else "",
        scores="\n".join(
            f"| {words} | {metadata['metrics'][key]:.2f} % |"
            for key, words in task.percent.items()
        ),
        how=f"block by block with {metadata['method']}" if local else "end to end",
        data=words(metadata["data"]),
        validation=words(metadata["validation"]),
        hardware=words(_hardware(machine)),
        software=words(software),
        recipe=code_block(metadata["recipe"]),
        requirement=_requirement(architecture),
        source=SOURCE,
        usage=load_lines(architecture, SOURCE, dense=task.dense),
        labels=[words(label) for label in labels],
        citations=citations(metadata["method"]),
        data_note=_DATA_NOTES.get(metadata["dataset"], _OTHER_DATA),
        **{key: metadata[key] for key in _SHOWN},
        cuts=", ".join(metadata["cuts"]) or "the head",
    )
    card.save(path)


_SHOWN = ("method", "k", "metrics", "epoch", "seconds")


def read_metadata(folder: Path) -> dict[str, Any]:
    """What ``config.json`` of an exported folder has under ``"man_zoo"``.

    Raises:
        UserError: If it is not there, not all that a card or an index needs, or under a name that
            is no folder's.
    """
    path = folder / CONFIG
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))["man_zoo"]
        score = metadata["metrics"][_task(metadata).main_score]
        _ = (metadata["name"], metadata["tag"], float(score))
    except (ValueError, LookupError, TypeError) as error:
        expected = "expected a folder of `man-zoo export`"
        raise UserError(f"{path} is not man_zoo's; {expected}.") from error
    with user_errors(ValueError, about=str(path)):
        check_title(metadata["name"], metadata["tag"])
    return metadata


def is_dense(metadata: dict[str, Any]) -> bool:
    """Whether weights are of a dense task, and have a decoder beside them."""
    return _task(metadata).dense


def _task(metadata: dict[str, Any]) -> Any:
    return TASKS[metadata.get("task", CLASSIFICATION)]  # older exports are of classifiers


def card_of(folder: Path, repository: str | None = None) -> str:
    """The card of an exported folder, with the repository that it is in, if it is in one.

    Raises:
        UserError: If it is no text.
    """
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text; expected a folder of `man-zoo export`.") from error
    return text.replace(SOURCE, f"hf-hub:{repository}") if repository else text


def load_lines(architecture: str, source: str, *, dense: bool = False) -> str:
    """Three lines of Python that load weights.

    Args:
        architecture: timm name of the network.
        source: ``local-dir:FOLDER`` or ``hf-hub:ORG/NAME``.
        dense: Whether it has no classifier.
    """
    imports = "timm" if is_timms_own(architecture) else "man_zoo, timm"
    return (
        f"import {imports}\n"
        f'model = timm.create_model("{source}", pretrained=True).eval()\n'
        + ("features = model.forward_features(images)" if dense else "logits = model(images)")
    )


def is_timms_own(architecture: str) -> bool:
    """Whether timm has the architecture without man_zoo."""
    return model_entrypoint(architecture).__module__.startswith("timm.")


def _requirement(architecture: str) -> str:
    if is_timms_own(architecture):
        return "Plain timm is enough:"
    return f"timm has no {architecture}; importing man_zoo registers it:"


def _hardware(machine: dict[str, Any]) -> str:
    if machine["device"] == "cpu":
        return f"{machine['cpu']}, {machine['threads']} thread(s)"
    return machine["device"]


def citations(method: str) -> list[str]:
    """BibTeX of a method: the wrapper's and its base method's own."""
    wrapper = method.partition("_")[0]
    keys = [wrapper] if wrapper in WRAPPERS else []
    return [_CITATIONS[key] for key in [*keys, base_method(method)] if key in _CITATIONS]
