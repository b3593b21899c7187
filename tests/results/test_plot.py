"""The figures show the numbers of the frames."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import typer
from experiments import digits
from scripts import script

from raydist import load, run_experiment
from raydist.results import plot

TRIALS = pd.DataFrame(
    {
        "trial": [f"strategy={s},eps={e},seed={n}-abc" for s in "cd" for e in "12" for n in "01"],
        "strategy": ["consensus"] * 4 + ["diffusion"] * 4,
        "threat.eps": [0.1, 0.1, 0.2, 0.2] * 2,
        "clean_acc": 0.9,
        "autoattack_acc": [0.5, 0.7, 0.2, 0.2, 0.6, 0.6, 0.3, 0.5],
        "autoattack_images": 64.0,
    }
)
ROUNDS = pd.DataFrame(
    [
        {"trial": t, "round": n, "agent": who, "metric": m, "value": n + 1.0 + i}
        for i, t in enumerate(TRIALS["trial"])
        for n in (0, 5)
        for who, m in (("mean", "disagreement"), ("centroid", "val_fosc"))
    ]
)


@pytest.fixture
def ax():
    fig, axes = plt.subplots()
    yield axes
    plt.close(fig)


def test_accuracy_by_eps_is_the_mean_in_percent_with_its_deviation(ax):
    plot.accuracy_by_eps(ax, TRIALS)
    first, second = ax.containers
    np.testing.assert_allclose(first.lines[0].get_xydata(), [[0.1, 60], [0.2, 20]])
    np.testing.assert_allclose(second.lines[0].get_xydata(), [[0.1, 60], [0.2, 40]])
    ends = first.lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, 60 + np.array([-1, 1]) * 10 * np.sqrt(2))
    assert "%" in ax.get_ylabel() and "64 test images" in ax.get_ylabel()


def test_trials_that_ended_otherwise_are_not_averaged_but_shown(ax):
    ended = ["completed"] * 3 + ["stopped"] + ["completed"] * 4
    trials = TRIALS.assign(status=ended, rounds_run=[5.0] * 3 + [3.0] + [5.0] * 4)
    trials.loc[3, "autoattack_acc"] = 0.9
    plot.accuracy_by_eps(ax, trials)
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xydata(), [[0.1, 60], [0.2, 20]])
    crosses = [line for line in ax.lines if line.get_marker() == "x" and len(line.get_xdata())]
    np.testing.assert_allclose(crosses[0].get_xydata(), [[0.2, 90]])
    ax.clear()
    plot.over_rounds(ax, trials, ROUNDS, "disagreement", "mean", "disagreement")
    thick = next(line for line in ax.lines if line.get_label() == "consensus")
    np.testing.assert_allclose(thick.get_xydata(), [[0, 2], [5, 7]])  # of three, not of four
    assert sum(line.get_linewidth() == 1 for line in ax.lines) == 8


def test_one_budget_is_drawn_as_bars_of_trials(ax):
    plot.accuracy_by_trial(ax, TRIALS.iloc[:2])
    clean, robust = ax.containers
    assert [bar.get_width() for bar in clean] == pytest.approx([90, 90])
    assert sorted(bar.get_width() for bar in robust) == pytest.approx([50, 70])
    assert "abc" not in ax.get_yticklabels()[0].get_text()


def test_lines_over_rounds_are_means_of_each_strategy(ax):
    plot.over_rounds(ax, TRIALS, ROUNDS, "disagreement", "mean", "disagreement")
    thick = {line.get_label(): line for line in ax.lines if line.get_linewidth() == 2}
    np.testing.assert_allclose(thick["consensus"].get_xydata(), [[0, 2.5], [5, 7.5]])
    np.testing.assert_allclose(thick["diffusion"].get_xydata(), [[0, 6.5], [5, 11.5]])
    assert ax.get_xlabel() == "round n" and ax.get_yscale() == "log"


def test_values_that_are_rounding_are_called_zero(ax):
    plot.over_rounds(ax, TRIALS, ROUNDS.assign(value=1e-13), "disagreement", "mean", "disagreement")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["consensus: 0 (rounding)", "diffusion: 0 (rounding)"]


def test_a_study_of_one_strategy_and_budget_has_a_line_for_each_trial():
    alone = TRIALS.assign(strategy="diffusion", **{"threat.eps": 0.1})
    fig = plot.figure(alone, ROUNDS)
    thick = [line for line in fig.axes[2].lines if line.get_linewidth() == 2]
    assert len(thick) == 8 and fig.axes[2].get_legend() is None  # too many for a legend
    plt.close(fig)


def test_what_was_not_measured_is_said(ax):
    plot.accuracy_by_eps(ax, TRIALS.drop(columns="autoattack_acc"))
    assert ax.texts[0].get_text() == "no robust accuracy was measured"


def test_the_file_is_a_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(plot.summary(TRIALS, ROUNDS))
    height, width, _ = plt.imread(tmp_path / "x.png").shape
    assert width > 2 * height > 500


@pytest.mark.parametrize(("trials", "inside", "below"), [(4, 4, 0), (6, 0, 6), (8, 0, 0)])
def test_a_legend_never_grows_over_the_lines(trials, inside, below):
    alone = TRIALS.iloc[:trials].assign(strategy="diffusion", **{"threat.eps": 0.1})
    fig = plot.figure(alone, ROUNDS)
    own = fig.axes[2].get_legend()
    assert (len(own.get_texts()) if own else 0) == inside
    assert sum(len(legend.get_texts()) for legend in fig.legends) == below
    plt.close(fig)


def test_the_analysis_of_robust_accuracy_draws_a_sweep_and_prints_its_numbers(tmp_path, capsys):
    sweep, trials = tmp_path / "sweep", {"consensus": [0], "diffusion": [0, 1]}
    for strategy, seeds in trials.items():
        for seed in seeds:
            tree = digits(strategy=strategy, seed=seed, rounds=2, evaluate={"autoattack": 8})
            run_experiment(tree, out=sweep / f"{strategy}-{seed}")
    analysis = script("robust_accuracy")
    analysis.main(sweep)
    frame = load(sweep)
    accuracies = 100 * frame[frame["strategy"] == "diffusion"]["autoattack_acc"]
    row = analysis.table(frame)["autoattack_acc"].loc["diffusion"].iloc[0]
    assert row.tolist() == pytest.approx([accuracies.mean(), accuracies.std(), 2])
    assert f"{accuracies.mean():.4g}" in capsys.readouterr().out
    height, width, _ = plt.imread(sweep / "robust_accuracy.png").shape
    assert width > 2 * height > 500


def test_the_analysis_of_no_sweep_says_so(tmp_path, capsys):
    with pytest.raises(typer.Exit) as ended:
        script("robust_accuracy").main(tmp_path)
    assert ended.value.exit_code == 2 and "holds no run" in capsys.readouterr().err
