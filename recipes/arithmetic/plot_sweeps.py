"""
Draw what sweeps.yaml has measured, and print the numbers as a table.

```bash
python recipes/pipeline.py --config recipes/arithmetic/sweeps.yaml
python recipes/arithmetic/plot_sweeps.py --report runs/arithmetic/sweeps.json --output_file docs/figures/sweeps.svg
```

It needs Matplotlib: `pip install -e '.[plots]'`.
"""

import argparse
import json
import sys
from pathlib import Path


try:
    import matplotlib
except ImportError:
    sys.exit("The figure needs Matplotlib: `pip install -e '.[plots]'`.")
matplotlib.use("Agg")  # draws without a display
import matplotlib.pyplot as plt


# For each panel its title, the label of its x axis, and the rows of the report by their place on it
PANELS = (
    (
        "Teacher's problems",
        "problems",
        {"125": "teacher_125", "250": "teacher_250", "500": "policy_coef_0.0", "1000": "teacher_1000"},
    ),
    (
        "Corrections that are not minimal",
        "share of the corrections",
        {"0": "policy_coef_0.0", "0.1": "careless_10", "0.3": "careless_30"},
    ),
    (
        "Samples",
        "share of the samples",
        {"0.1": "share_10", "0.25": "share_25", "0.5": "share_50", "1": "policy_coef_0.0"},
    ),
    (
        "Weight of the token rewards",
        "policy_coef",
        {str(coef): f"policy_coef_{coef}" for coef in (0.0, 0.03, 0.1, 0.3, 1.0)},
    ),
    (
        "Threshold of the paper's rewards",
        "reward_baseline",
        {"0.3": "paper_threshold_0.3", "0.5": "rlmec_paper", "0.7": "paper_threshold_0.7"},
    ),
    (
        "Rounds of sampling",
        "rounds",
        {"1": "policy_coef_0.0", "2": "sampling_round_2"},
    ),
    (
        "Rewrites tried until one passes",
        "num_rewrites",
        {"1": "policy_coef_0.0", "8": "tries_8"},
    ),
)
# Of the palette by Okabe and Ito, which people with any color vision can tell apart
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw(accuracy: dict[str, dict], output_file: Path) -> None:
    """Draw a panel for each sweep, with the 95% Wilson intervals and the accuracy before training."""
    plt.rcParams.update({"svg.hashsalt": "sweeps", "svg.fonttype": "none", "font.size": 9})  # the same file each time
    figure, axes = plt.subplots(2, 4, figsize=(11.5, 5.2), sharey=True, layout="constrained")
    *panels, legend = axes.flat
    for axis, (title, label, rows) in zip(panels, PANELS, strict=True):
        means = [accuracy[row]["mean"] for row in rows.values()]
        bounds = [accuracy[row]["interval"] for row in rows.values()]
        lengths = [
            [max(0.0, mean - low) for mean, (low, _) in zip(means, bounds, strict=True)],
            [max(0.0, high - mean) for mean, (_, high) in zip(means, bounds, strict=True)],
        ]
        axis.errorbar(list(rows), means, yerr=lengths, color=BLUE, marker="o", capsize=3)
        axis.axhline(accuracy["start"]["mean"], color=ORANGE, linestyle="--", linewidth=1, label="before training")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label)
        axis.grid(axis="y", alpha=0.3)
        axis.margins(x=0.1)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    panels[0].set_ylim(top=1.01)  # or the markers at 1 are cut
    legend.axis("off")
    legend.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    output_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output_file, metadata={"Date": None} if output_file.suffix == ".svg" else None)
    plt.close(figure)


def table(accuracy: dict[str, dict]) -> str:
    """The numbers of all panels in Markdown."""
    lines = ["| sweep | value | accuracy | 95% interval |", "|---|---|---|---|"]
    for title, label, rows in PANELS:
        for value, row in rows.items():
            low, high = accuracy[row]["interval"]
            lines.append(f"| {title}: {label} | {value} | {accuracy[row]['mean']:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", default="runs/arithmetic/sweeps.json", help="Report of sweeps.yaml.")
    parser.add_argument("--output_file", default="docs/figures/sweeps.svg", help="Figure to write, .svg or .png.")
    options = parser.parse_args()
    try:
        accuracy = json.loads(Path(options.report).read_text(encoding="utf-8"))["accuracy"]
    except (OSError, ValueError, KeyError, TypeError):
        sys.exit(f"{options.report!r} is no report of a pipeline. Run recipes/arithmetic/sweeps.yaml first.")
    missing = {row for _, _, rows in PANELS for row in rows.values()} - accuracy.keys()
    if missing:
        sys.exit(f"{options.report!r} lacks {', '.join(sorted(missing))}. It has to be the report of sweeps.yaml.")
    draw(accuracy, Path(options.output_file))
    print(table(accuracy))


if __name__ == "__main__":
    main()
