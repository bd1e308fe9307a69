"""
How many incorrect attempts `--teacher reference` corrects, and how much it changes, beside rewriting them as the
reference and beside the task's own editor.

```bash
python benchmarks/bench_reference.py                                       # the built-in task
python benchmarks/bench_reference.py --task gsm8k --max_rows 1000          # GSM8K, from the Hub
python benchmarks/bench_reference.py --dataset_name runs/arithmetic/seed-0/samples   # sampled attempts
```

`--dataset_name` names problems of the task, or samples as `sample.py` writes them. Problems have no attempts: correct
solutions are corrupted, with the consequences for all later steps.
"""

import argparse
import random
import re
import statistics
from collections import Counter
from fractions import Fraction

from rlmec_trl.credit.alignment import edit_distance
from rlmec_trl.data.errors import UserError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.messages import message_text
from rlmec_trl.data.steps import split_steps
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.answers import find_statements
from rlmec_trl.tasks.steps import read_step
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.editors import judge_edit
from rlmec_trl.teachers.reference_editor import ReferenceEditor
from rlmec_trl.teachers.reference_values import read_reference, replace_numbers


# A computation of two numbers and its result, "48 / 2 = 24" or "59 - 16 is 43"
_COMPUTATION = re.compile(
    r"(?<![\d.,+*/x-])(?<![-+*/x] )[$]?(\d[\d,]*(?:\.\d+)?) ?([-+*/x]) ?[$]?(\d[\d,]*(?:\.\d+)?)"
    r"( ?(?:=|is|makes) ?[$]?)(\d[\d,]*(?:\.\d+)?)(?![\d%]|[.,/]\d| ?[-+*/x] ?\d)"
)
_OPERATIONS = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "x": Fraction.__mul__}
KINDS = ("result", "operand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--dataset_name", help="Problems or samples. By default, those of the task.")
    parser.add_argument("--dataset_split", default="train")
    parser.add_argument("--max_rows", type=int, default=1000)
    parser.add_argument("--show", type=int, default=0, help="Number of rewrites to print.")
    args = parser.parse_args()
    task = load_task(args.task)
    problems = load_problems(task, args)
    comparable = [row for row in problems if read_reference(row["problem"], row["reference"], separator(task))]
    print(f"{len(comparable)} of {len(problems)} references state values that can be compared.")
    if "completion" in problems[0]:
        attempts = {"sampled": [row | {"clean": None} for row in problems]}
    else:
        attempts = make_attempts(task, problems)
    for name, rows in attempts.items():
        report(task, name, rows, args.show)
    report_correct(task, [row for rows in attempts.values() for row in rows])


def load_problems(task, args) -> list[dict]:
    if args.dataset_name is None and task is arithmetic.TASK:
        rows = arithmetic.make_arithmetic(warmup=0, train=0, validation=0, test=args.max_rows)["test"]
    else:
        name = args.dataset_name or task.hub_id
        configs = task.hub_configs[0] if args.dataset_name is None and task.hub_configs else None
        if configs is not None:
            from datasets import load_dataset

            rows = load_dataset(name, configs, split=f"{args.dataset_split}[:{args.max_rows}]")
        else:
            rows = load_rows(name, args.dataset_split, args.max_rows)
    if "prompt" not in rows.column_names:
        return [task.read_row(row) for row in rows]
    return [
        {
            "problem": task.raw_problem(row["prompt"]),
            **{name: row[name] for name in ("reference", "answer")},
            **({"completion": message_text(row["completion"])} if "completion" in row else {}),
        }
        for row in rows
    ]


def separator(task) -> str:
    return task.wording.step_separator


def make_attempts(task, problems: list[dict]) -> dict[str, list[dict]]:
    """Incorrect attempts by the style of the solution and the kind of error."""
    rng = random.Random(0)
    if task is arithmetic.TASK:
        styles = {"policy's style": solve}
    else:
        styles = {"reference's words": in_the_references_words, "equations alone": equations_alone}
    attempts = {f"{style}, wrong {kind}": [] for style in styles for kind in KINDS}
    for row in problems:
        for style, write in styles.items():
            clean = write(rng, row)
            if not (task.is_correct(clean, row["answer"], row["problem"]) and is_sound(task, row, clean)):
                continue
            for kind in KINDS:
                attempt = corrupt(rng, split_steps(clean, separator(task)), kind)
                if attempt is not None and not task.is_correct(attempt, row["answer"], row["problem"]):
                    attempts[f"{style}, wrong {kind}"].append(row | {"completion": attempt, "clean": clean})
    return attempts


def solve(rng: random.Random, row: dict) -> str:
    numbers = arithmetic.read_problem(row["problem"])
    return arithmetic.write_solution(numbers, [rng.choice(arithmetic.CONNECTIVES) for _ in numbers[1:]])


def in_the_references_words(rng: random.Random, row: dict) -> str:
    plain = re.sub(r"<<[^<>\n]*>>", "", row["reference"])
    return "\n".join([*plain.rstrip().split("\n")[:-1], f"The answer is {row['answer']}"])


def equations_alone(rng: random.Random, row: dict) -> str:
    plain = re.sub(r"<<[^<>\n]*>>", "", row["reference"])
    return "\n".join([*(found[0] for found in _COMPUTATION.finditer(plain)), f"The answer is {row['answer']}"])


def corrupt(rng: random.Random, steps: list[str], kind: str) -> str | None:
    """
    A solution with a mistake in one computation. Later steps use the wrong result, and are computed correctly from it.
    """
    places = [index for index, step in enumerate(steps) if len(_COMPUTATION.findall(step)) == 1]
    if not places:
        return None
    place = rng.choice(places)
    corrupted, wrong = list(steps[:place]), {}
    for index, step in enumerate(steps[place:], place):
        found = _COMPUTATION.search(step)
        if found is None or (index > place and index not in places):
            corrupted.append(replace_numbers(step, wrong))
            continue
        left, right, result = (Fraction(found[number].replace(",", "")) for number in (1, 3, 5))
        new_left, new_right = wrong.get(left, left), wrong.get(right, right)
        if index == place and kind == "operand":
            new_right += rng.choice([delta for delta in (-2, -1, 1, 2, 10) if right + delta > 0])
        new_result = compute(new_left, found[2], new_right) if (new_left, new_right) != (left, right) else result
        if index == place and kind == "result":
            new_result += rng.choice([delta for delta in (-10, -2, -1, 1, 2, 10) if result + delta > 0])
        if new_result is None or new_result <= 0 or (new_result * 100).denominator != 1:
            return None
        texts = [
            replace_numbers(found[number], {old: new})
            for number, old, new in ((1, left, new_left), (3, right, new_right), (5, result, new_result))
        ]
        computation = found[0]
        for number, text in zip((5, 3, 1), reversed(texts), strict=True):
            start, end = (position - found.start() for position in found.span(number))
            computation = computation[:start] + text + computation[end:]
        if new_result != result:
            wrong[result] = new_result
        rest = [replace_numbers(text, wrong) for text in (step[: found.start()], step[found.end() :])]
        corrupted.append(rest[0] + computation + rest[1])
    return "".join(corrupted)


def compute(left: Fraction, operator: str, right: Fraction) -> Fraction | None:
    if operator == "/":
        return left / right if right else None
    return _OPERATIONS[operator](left, right)


def report(task, name: str, rows: list[dict], num_shown: int) -> None:
    """Print what each teacher does with the incorrect attempts among rows."""
    rows = [row for row in rows if not task.is_correct(row["completion"], row["answer"], row["problem"])]
    print(f"\n{name}: {len(rows)} incorrect attempts")
    if not rows:
        return
    teachers = {"reference": ReferenceEditor(task), "whole reference": rewrite_as_the_reference}
    if task.editor is not None:
        teachers["task"] = task.editor
    for teacher, editor in teachers.items():
        texts = [[row[key] for row in rows] for key in ("problem", "reference", "completion")]
        outcomes, distances, num_correct, num_placed = Counter(), [], 0, 0
        for row, edit in zip(rows, editor(*texts), strict=True):
            outcome, error_step, rewrite = judge_edit(
                task, row["problem"], row["answer"], row["completion"], False, edit
            )
            outcomes[outcome] += 1
            if rewrite is None:
                continue
            num_correct += is_sound(task, row, rewrite)
            num_placed += error_step == first_error(task, row)
            words = row["completion"].split()
            distances.append(edit_distance(words, rewrite.split()) / len(words))
            if teacher == "reference" and len(distances) <= num_shown:
                print(row["completion"], rewrite, row["reference"], sep="\n--\n", end="\n\n")
        counted = ", ".join(f"{outcome} {count / len(rows):.3f}" for outcome, count in outcomes.most_common())
        print(
            f"  {teacher}: every step correct {num_correct / len(rows):.3f}, first error located "
            f"{num_placed / len(rows):.3f}, median share of the words changed "
            f"{statistics.median(distances) if distances else float('nan'):.3f} ({counted})"
        )


def report_correct(task, rows: list[dict]) -> None:
    """Print what becomes of attempts with a correct answer, with and without an incorrect step."""
    rows = [row for row in rows if task.is_correct(row["completion"], row["answer"], row["problem"])]
    editor, counts = ReferenceEditor(task), Counter()
    for row in rows:
        edit = editor.edit(row["problem"], row["reference"], row["completion"])
        outcome, _, rewrite = judge_edit(task, row["problem"], row["answer"], row["completion"], True, edit)
        is_flawed = not is_sound(task, row, row["completion"])
        is_fixed = rewrite is not None and is_sound(task, row, rewrite)
        counts[is_flawed, f"{outcome}, every step correct" if is_fixed else outcome] += 1
    for is_flawed in (False, True):
        of_kind = {outcome: count for (flawed, outcome), count in counts.items() if flawed == is_flawed}
        if of_kind:
            counted = "; ".join(f"{outcome} {count}" for outcome, count in of_kind.items())
            print(f"\nCorrect answers with {'an' if is_flawed else 'no'} incorrect step: {counted}")


def rewrite_as_the_reference(problems, references, completions) -> list[tuple[int, str]]:
    return [(0, reference) for reference in references]


def is_sound(task, row: dict, solution: str) -> bool:
    """
    Whether every step is correct: of the built-in task, by the true values; otherwise, every equation holds and has a
    value of the reference on a side, as the corrupted solutions had before.
    """
    if task is arithmetic.TASK:
        terse = solution.strip() == row["reference"].strip()
        return terse or all(arithmetic.check_steps(row["problem"], solution))
    reference = read_reference(row["problem"], row["reference"], separator(task))
    if reference is None:
        return False
    steps = [read_step(step) for step in split_steps(solution, separator(task))]
    sides = [{*left.values, *right.values} for _, equations in steps for left, right in equations]
    holds = all(step[0] for step in steps) and all(not reference.values.isdisjoint(side) for side in sides)
    return holds and all(reference.is_answer(statement.answer) for statement in find_statements(solution))


def first_error(task, row: dict) -> int | None:
    if task is arithmetic.TASK:
        return arithmetic.check_steps(row["problem"], row["completion"]).index(False)
    if row["clean"] is None:
        return None
    steps = [split_steps(row[name], separator(task)) for name in ("completion", "clean")]
    return next(index for index, (step, clean) in enumerate(zip(*steps, strict=False)) if step != clean)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
