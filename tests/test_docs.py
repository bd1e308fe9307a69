"""Every command and path that the README, the docs, the recipes and their YAML files show is real."""

import ast
import importlib
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from trl import SFTConfig

from rlmec_trl import RLMECConfig
from rlmec_trl.cli.main import divide
from rlmec_trl.cli.stages import find_stages
from rlmec_trl.cli.words import find_configs, split_options


ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
# These pages start servers in another environment and look at files: of their commands only the recipes' are checked
FREE_COMMANDS = {"docs/online.md", "docs/teachers.md"}
CONFIGS = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml"))


def blocks(text, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for of, block in found if of == language]


def commands_in(text, only_recipes=False):
    """The shell commands of a text, each as its words, without environment variables in front and comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if only_recipes and "recipes/" not in line:
            continue
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            yield words


def head_command(path):
    """The launch command that a YAML file begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        lines.append(line.removeprefix("# "))
        if not line.endswith("\\"):
            break
    return "\n".join(lines)


def launched(words):
    """The recipe that a command launches and the words for it, or `None`."""
    if words[0] == "rlmec-trl" and words[1] != "demo" and not words[1].startswith("-"):
        recipe = find_stages()[words[1]]
        return recipe.stem, divide(words[1], str(recipe), find_configs(split_options(words[2:])))[1]
    place = next((index for index, word in enumerate(words) if re.fullmatch(r"recipes/\w+\.py", word)), None)
    return None if place is None else (Path(words[place]).stem, words[place + 1 :])


def shown_commands():
    """Every command that is shown somewhere, with the name of the place."""
    for name, text in PAGES.items():
        for block in blocks(text, "bash"):
            for words in commands_in(block, only_recipes=name in FREE_COMMANDS):
                yield f"{name}: {' '.join(words)}", words
    for path in CONFIGS:
        if path.parent.name != "accelerate_configs":
            yield from ((f"{path.parent.name}/{path.name}", words) for words in commands_in(head_command(path)))
    for name in RECIPES:
        docstring = ast.get_docstring(ast.parse((ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")))
        for block in blocks(docstring, "bash"):
            yield from ((f"{name}.py: {' '.join(words)}", words) for words in commands_in(block))


SHOWN = list(shown_commands())


def check_recipe_command(recipe, words):
    if recipe == "pipeline":
        from rlmec_trl.stages.pipeline_file import load_pipeline

        load_pipeline(ROOT / words[words.index("--config") + 1])
        return
    parser = importlib.import_module(f"recipes.{recipe}").make_parser()
    if any("use_cpu" in field.name for kind in parser.dataclass_types for field in fields(kind)):
        words = [*words, "--use_cpu", "true"]  # where there is no GPU, some of what asks for one is refused
    # What earlier stages leave, or an environment variable names, is not there
    words = [str(ROOT / word) if word.startswith("recipes/") else word for word in words]
    if any(word.startswith("runs/") and word.endswith(".yaml") for word in words):
        words = words[2:]
        words += ["--dataset_name", "any"] if "--dataset_name" not in words else []
    parser.parse_args_and_config(words)


@pytest.mark.parametrize("words", [words for _, words in SHOWN], ids=[name for name, _ in SHOWN])
def test_a_command_that_is_shown_works(words):
    launch = launched(words)
    if words[:3] == ["accelerate", "launch", "--config_file"]:
        assert (ROOT / words[3]).is_file()
    if launch is not None:
        check_recipe_command(*launch)
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:.*## ", makefile, re.MULTILINE)
    elif words[0] == "python" and re.fullmatch(r"recipes/\w+/\w+\.py", words[1]):  # of one pipeline
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(word.removeprefix("--") in source for word in words if word.startswith("--"))
    elif words[0] == "rlmec-trl":
        assert words[1] in {"demo", "--help", "--version"}
    elif words[:2] == ["pip", "install"] and words[-1].partition("[")[0] in {".", "rlmec-trl"}:
        extras = re.search(r"\[(.*)\]", words[-1])
        known = (ROOT / "setup.cfg").read_text(encoding="utf-8")
        assert all(f"\n{extra} =\n" in known for extra in (extras[1].split(",") if extras else []))
    else:
        assert words[0] in {"export", "source", "git", "cd"}, "a kind of command that nothing checks"


def test_every_recipe_and_every_yaml_file_shows_how_to_launch_it():
    for recipe in RECIPES:
        assert any(name.startswith(f"{recipe}.py: ") and launched(words)[0] == recipe for name, words in SHOWN)
    for path in CONFIGS:
        if path.parent.name == "accelerate_configs":
            assert f"--config_file recipes/accelerate_configs/{path.name}" in path.read_text(encoding="utf-8")
        else:
            assert f"--config {path.relative_to(ROOT).as_posix()}" in head_command(path)


# --- Pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    # A name with <...> is a placeholder, and runs/ is what stages write
    for name in re.findall(r"`((?:recipes|docs|rlmec_trl|tests|benchmarks)/[\w./-]*)`", PAGES[page]):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(("page", "code"), [(page, code) for page in PAGES for code in blocks(PAGES[page], "python")])
def test_python_code_imports_what_exists_and_passes_arguments_that_exist(page, code):
    tree, imported = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            exec(ast.unparse(node), imported)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, *attributes = ast.unparse(call.func).split(".")
        starred = any(isinstance(argument, ast.Starred) for argument in call.args)
        if name not in imported or starred or any(keyword.arg is None for keyword in call.keywords):
            continue
        function = imported[name]
        for attribute in attributes:
            function = getattr(function, attribute)
        inspect.signature(function).bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})


def test_the_tree_of_the_readme_has_a_line_for_every_room_and_file():
    tree = next(block for block in blocks(README, "") if block.startswith("rlmec_trl/"))
    shown, parents = set(), []
    for line in tree.splitlines():
        entry = re.match(r"( *)(\S+)", line)
        depth = len(entry[1]) // 2
        parents = [*parents[:depth], entry[2]]
        shown.add("".join(parents))
    listed = {"rlmec_trl/", "recipes/", "tests/", "benchmarks/", "docs/"}
    for folder in ("rlmec_trl", "recipes"):
        rooms = [path.name for path in (ROOT / folder).iterdir() if path.is_dir() and path.name[0] not in "_."]
        listed |= {f"{folder}/{name}/" for name in rooms}
    listed |= {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")}
    listed |= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert shown == listed


def table_cells(text, header):
    """The cells of the first table with this header."""
    lines = text[text.index(header) :].splitlines()[2:]
    rows = lines[: next((index for index, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_readme_has_the_figures_of_the_evidence_and_the_rows_of_the_pipeline():
    from rlmec_trl.stages.pipeline_file import load_pipeline

    page = PAGES["docs/evidence.md"]
    demo = {row[0]: row[1] for row in table_cells(page, "| method | accuracy | correct |")}
    seeds = {row[0]: row[1] for row in table_cells(page, "| method | accuracy ± std over seeds |")}
    rows = table_cells(README, "| method |")
    assert {row[0]: row[1] for row in rows if row[1]} == demo
    assert [row[2].strip("*") for row in rows] == [seeds[row[0]].strip("*") for row in rows]
    pipeline = load_pipeline(ROOT / "recipes" / "arithmetic" / "pipeline.yaml")
    assert list(demo) == [f"`{stage.evaluate}`" for stage in pipeline.stages if stage.evaluate]


def test_the_contract_tests_are_those_that_the_page_of_the_architecture_names():
    files = sorted((ROOT / "tests" / "trainers").glob("test_trl_*contract.py"))
    written = re.findall(
        r"^def (test_\w+)\(", "".join(path.read_text(encoding="utf-8") for path in files), re.MULTILINE
    )
    page = PAGES["docs/architecture.md"]
    tables = page[page.index("## Private parts of TRL") :]
    named = set(re.findall(r"`(test_\w+)`", tables))
    assert len(files) == 3 and named == set(written)


def test_both_quick_starts_train_the_same_objective():
    code = next(code for code in blocks(README, "python") if "RLMECTrainer(" in code)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    call = next(call for call in calls if getattr(call.func, "id", None) == "RLMECConfig")
    in_python = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    in_yaml = yaml.safe_load((ROOT / "recipes" / "configs" / "rlmec.yaml").read_text(encoding="utf-8"))
    fields_of = RLMECConfig.__dataclass_fields__
    method = {"learning_rate", "loss_type", *(fields_of.keys() - SFTConfig.__dataclass_fields__.keys())}
    objectives = [
        {name: settings.get(name, fields_of[name].default) for name in method} for settings in (in_python, in_yaml)
    ]
    assert objectives[0]["policy_coef"] == 0, "with the policy term, these would matter too:"
    for objective in objectives:
        for name in ("loss_type", "normalize_by", "negative_credit"):
            objective.pop(name)
    assert objectives[0] == objectives[1]
