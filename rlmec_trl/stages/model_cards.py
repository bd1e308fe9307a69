"""Cards of models, in the form of TRL's: method, data, reward model, settings, and what was measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import is_peft_model
from huggingface_hub import ModelCard, ModelCardData
from transformers import Trainer

from ..data.marks import read_object
from ..data.public_names import is_hub_name, public_name, without_paths
from ..grm.prompts import WORDING_FILE
from ..reports.accuracy import Accuracy, read_accuracy, read_counts
from ..reports.tables import AUDIT_LABELS, pool_audits
from .dataset_cards import code, fenced, shown_name, table, versions
from .training_settings import EVALUATION, NO_EFFECT


# What a reader of a card wants to know of every training; of the others, those that are not the default
_SETTINGS = ("learning_rate", "lr_scheduler_type", "max_length", "loss_type", "beta", "seed")
# The settings of TRL's own classes that only say how a training runs are not in the card
_LEFT_OUT = NO_EFFECT | EVALUATION | {"per_device_train_batch_size", "gradient_accumulation_steps", "max_steps"}
_TRL_CITATION = """\
@software{trl,
    title  = {{TRL: Transformers Reinforcement Learning}},
    author = {von Werra, Leandro and others},
    url    = {https://github.com/huggingface/trl},
    year   = {2020},
}"""


@dataclass(frozen=True)
class ModelFacts:
    """
    What the card of a model says, beside what lies in the model's folder.

    Args:
        method (`str`):
            What it was trained with, such as `"RLMEC"`.
        base_model (`str`, *optional*):
            Path or Hub name of the model that training started from.
        datasets (`tuple[str, ...]`, *optional*, defaults to `()`):
            Paths or Hub names of what it was trained on.
        made_by (`dict[str, str | None]`, *optional*, defaults to `{}`):
            Other models and tasks, by what they were used for.
        grm (`str`, *optional*):
            Path or Hub name of the generative reward model that gave the credit.
        settings (`dict`, *optional*, defaults to `{}`):
            Thresholds, losses and other settings.
        paper (`dict[str, str]`, *optional*, defaults to `{}`):
            Title, id and citation of the method's paper.
        tags (`list[str]`, *optional*, defaults to `[]`):
            Tags of the card.
    """

    method: str
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    made_by: Mapping[str, str | None] = field(default_factory=dict)
    grm: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class About:
    """
    What a trainer does not know of its model.

    Args:
        task (`str`, *optional*):
            The task, as the recipe was given it.
        grm (`str`, *optional*):
            Path or Hub name of the generative reward model. It need not be given for scored samples of a pipeline.
        reward_models (`dict[str, str | None]`, *optional*, defaults to `{}`):
            Other reward models by what they score.
        paper (`dict[str, str]`, *optional*):
            The paper of the method, if it is not the one that the trainer cites.
    """

    task: str | None = None
    grm: str | None = None
    reward_models: Mapping[str, str | None] = field(default_factory=dict)
    paper: Mapping[str, str] | None = None


def trainer_facts(trainer: Trainer, datasets: Sequence[str], about: About) -> ModelFacts:
    """What the card of a trainer's model says."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if is_peft_model(model) else model
    grm = about.grm or next(filter(None, (stage_settings(name).get("grm") for name in datasets)), None)
    return ModelFacts(
        trainer._name,
        base.config._name_or_path or None,
        tuple(datasets),
        {"task": about.task, **about.reward_models},
        grm,
        _settings(trainer),
        about.paper or trainer._paper,
        sorted(trainer._tag_names),
    )


def model_card(folder: Path, facts: ModelFacts, name: str, repo_id: str | None = None) -> str:
    """
    The card of a model, the same for the same training. Evaluations and audits are in it if they lie by the model.

    Args:
        folder (`Path`):
            Folder of the model.
        facts ([`ModelFacts`]):
            What the card says.
        name (`str`):
            Name of the model.
        repo_id (`str`, *optional*):
            Its name on the Hub, if it is published.
    """
    data = ModelCardData(
        base_model=facts.base_model if facts.base_model is not None and is_hub_name(facts.base_model) else None,
        datasets=[dataset for dataset in facts.datasets if is_hub_name(dataset)] or None,
        library_name="peft" if (folder / "adapter_config.json").exists() else "transformers",
        model_name=name,
        tags=["generated_from_trainer", "rlmec-trl", *facts.tags],
    )
    made_by = {
        "base model": facts.base_model,
        "generative reward model": facts.grm,
        **facts.made_by,
    }
    rows = [(what, shown_name(value)) for what, value in made_by.items() if value is not None]
    rows += [("data", shown_name(dataset)) for dataset in facts.datasets]
    paper = facts.paper
    introduced = (
        f", a method introduced in [{paper['title']}](https://huggingface.co/papers/{paper['id']})" if paper else ""
    )
    sections = [
        f"# Model Card for {name}",
        f"This model was trained with {facts.method}{introduced}, using rlmec-trl and "
        "[TRL](https://github.com/huggingface/trl).",
        f"## Quick start\n\n{_quick_start(folder, repo_id or name)}",
        "## Training procedure\n\n" + table(("", ""), rows),
    ]
    state = read_object(folder / "trainer_state.json") or {}
    settings = ({"steps": state["global_step"]} if "global_step" in state else {}) | dict(facts.settings)
    if settings:
        shown = ((code(key), code(value)) for key, value in settings.items())
        sections.append("### Settings\n\n" + table(("setting", "value"), shown))
    if evaluations := find_evaluations(folder):
        sections.append(
            "## Evaluation\n\n" + table(("evaluation", "accuracy", "correct", "95% interval"), map(_row, evaluations))
        )
    grm = folder if (folder / WORDING_FILE).exists() else None if facts.grm is None else Path(facts.grm)
    audits = [] if grm is None else find_audits(grm)
    for title, audit in audits:
        sections.append(
            f"## Audit of the generative reward model ({title})\n\n"
            "On samples of problems that it was not trained on, against a program that knows every correct step.\n\n"
            + table(("", "", "95% interval"), _audit_rows(audit))
        )
    packages = ("trl", "transformers", "torch", "datasets", "tokenizers")
    sections.append(f"### Framework versions\n\n{versions(*packages)}")
    citations = [paper["citation"]] if paper else []
    sections.append("## Citations\n\n" + "\n\n".join(fenced(text, "bibtex") for text in [*citations, _TRL_CITATION]))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def stage_settings(output: str) -> dict[str, Any]:
    """The settings of the pipeline's stage that wrote an output; empty outside of a pipeline's folder."""
    path = Path(output).expanduser()
    try:
        settings = yaml.safe_load((path.parent / ".stages" / f"{path.name}.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


def find_evaluations(folder: Path) -> list[tuple[str, Accuracy]]:
    """
    Results of `evaluate.py` and `evaluate_pairs.py` for a model, with their names: those in its folder, those beside
    it whose names begin with its own (`policy.json`, `policy_pairs.json`, `policy-test.json`), and a pipeline's.
    """
    folder = folder.absolute()
    results = folder.parent / "results"
    paths = [
        *folder.glob("*.json"),
        *(folder.parent / f"{folder.name}{end}.json" for end in ("", "_pairs", "-validation", "-test")),
        *(results / f"{folder.name}-{split}.json" for split in ("validation", "test")),
    ]
    found = []
    for path in paths:
        result = read_object(path) or {}
        of_pairs = result["pairs"] if isinstance(result.get("pairs"), dict) else {}
        read = {path.stem: read_accuracy(path)}
        read |= {f"{path.stem}, {kind}": read_counts(counts) for kind, counts in of_pairs.items()}
        found += [(name, accuracy) for name, accuracy in read.items() if accuracy is not None]
    return found


def find_audits(grm: Path) -> list[tuple[str, dict[str, Any]]]:
    """
    Results of `audit.py` for a generative reward model, with their names. In the folder of a pipeline, those of
    samples that it has scored; elsewhere an `audit.json` in its folder or beside it.
    """
    grm = grm.expanduser().absolute()
    stages = grm.parent / ".stages"
    if stages.is_dir():
        outputs = (grm.parent / path.name.removesuffix(".yaml") for path in sorted(stages.glob("*.json.yaml")))
        paths = [path for path in outputs if _audited(path) == grm]
    else:
        paths = [grm / "audit.json", grm.parent / "audit.json"]
    audits = [(path.stem, read_object(path) or {}) for path in paths]
    return [(name, {figure: audit[figure] for figure in AUDIT_LABELS}) for name, audit in audits if _is_audit(audit)]


def _is_audit(audit: dict[str, Any]) -> bool:
    """Whether a JSON object has all figures of an audit, each of which is a count, a number or not measured."""
    return AUDIT_LABELS.keys() <= audit.keys() and all(
        value is None or isinstance(value, (int, float)) or read_counts(value) is not None
        for value in (audit[figure] for figure in AUDIT_LABELS)
    )


def _audited(audit: Path) -> Path | None:
    """The reward model that an audit of a pipeline is about."""
    scored = stage_settings(str(audit)).get("dataset_name")
    grm = stage_settings(scored).get("grm") if isinstance(scored, str) else None
    return Path(grm).expanduser().absolute() if isinstance(grm, str) else None


def _row(evaluation: tuple[str, Accuracy]) -> tuple[str, ...]:
    name, accuracy = evaluation
    low, high = accuracy.interval
    return name, f"{accuracy.mean:.3f}", f"{accuracy.correct:,} of {accuracy.total:,}", f"{low:.3f} to {high:.3f}"


def _audit_rows(audit: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, value in pool_audits([audit]).items():
        mean = value["mean"] if isinstance(value, dict) else value
        counted = isinstance(value, dict) and mean is not None
        low, high = Accuracy(value["correct"], value["total"]).interval if counted else (None, None)
        interval = f"{low:.3f} to {high:.3f}" if counted else ""
        rows.append((AUDIT_LABELS[name], "-" if mean is None else f"{mean:.3f}", interval))
    return rows


def _settings(trainer: Trainer) -> dict[str, Any]:
    """The settings of a training that change its result: those of this package, and TRL's that are not the default."""
    args = trainer.args
    ours = {
        name
        for kind in type(args).__mro__
        if kind.__module__.partition(".")[0] == __package__.partition(".")[0]
        for name in kind.__dict__.get("__annotations__", {})
    }
    shown = {"batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size}
    for part in dataclasses.fields(args):
        value = getattr(args, part.name)
        changed = part.default is not dataclasses.MISSING and value != part.default
        wanted = part.name in ours or part.name in _SETTINGS or changed
        if part.init and wanted and part.name not in _LEFT_OUT and value not in (None, {}, []):
            shown[part.name] = value
    # Others, such as a quantization, are in the files of the model
    plain = {name: getattr(value, "value", value) for name, value in shown.items()}
    plain = {name: value for name, value in plain.items() if isinstance(value, (bool, int, float, str, list, tuple))}
    return without_paths(plain)


def _quick_start(folder: Path, name: str) -> str:
    if (folder / WORDING_FILE).exists():
        code = (
            "from rlmec_trl import GenerativeRewardModel\n\n"
            f'grm = GenerativeRewardModel.from_pretrained("{name}")\n'
            'attempt = "4 + 3 is 8"\n'
            'ids = [*grm.processing_class(attempt)["input_ids"], grm.processing_class.eos_token_id]\n'
            'rows = ["Tom has 4 pens and buys 3."], ["4 + 3 = 7"], [attempt]\n'
            "print(grm.locate(*rows))  # index of the first incorrect step, -1 where there is none\n"
            "print(grm.rewrite(*rows, [ids]))\n"
            "print(grm.score(*rows, [ids]))  # a probability for each token of `ids`"
        )
    elif "ForSequenceClassification" in str((read_object(folder / "config.json") or {}).get("architectures")):
        code = (
            "from transformers import pipeline\n\n"
            f'scores = pipeline("text-classification", model="{name}", function_to_apply="none")\n'
            'print(scores("A prompt and a response to it."))'
        )
    else:
        chat = (folder / "chat_template.jinja").exists()
        prompt = '[{"role": "user", "content": "What is 4 + 3?"}]' if chat else '"What is 4 + 3?"'
        code = (
            "from transformers import pipeline\n\n"
            f'generator = pipeline("text-generation", model="{name}")\n'
            f"print(generator({prompt}, max_new_tokens=256, return_full_text=False)[0])"
        )
    base = local_base(folder)
    if base is None:
        return fenced(code, "python")
    return fenced(code, "python") + (
        f"\n\nThis is an adapter of `{public_name(base)}`, which is not on the Hub: pass your copy of that model to "
        "`PeftModel.from_pretrained`, or ask its author for the merged model."
    )


def local_base(folder: Path) -> str | None:
    """Path of the base model of an adapter, if it is not one of the Hub, without which nobody else can load it."""
    base = (read_object(folder / "adapter_config.json") or {}).get("base_model_name_or_path")
    return base if isinstance(base, str) and not is_hub_name(base) else None
