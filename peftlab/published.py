"""What papers published, as data.

Fu et al. (arXiv 2211.15583, AAAI-23): Table 1, Table 2 and the sweep of Figure 5. Scores are the paper's, in points of
100. In the released code the backbone is roberta-base, and a score is Matthews' correlation on CoLA, the mean of
Pearson's and Spearman's on STS-B, of accuracy and F1 on MRPC and CB, else accuracy.

Ding et al. (Nature Machine Intelligence 5, 2023): the means of Table 2, as `combined`.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from . import claims, resampling
from .errors import choose

# Their name: the registry's. The order is the tables'.
NAMES = dict(
    Full="full",
    Random="random-mask",
    Mixout="mixout",
    BitFit="bitfit",
    MagPruning="magnitude-mask",
    Adapter="adapter",
    LoRA="lora",
    DiffPruning="diff-pruning",
    ChildPruning="child-pruning",
    SAM="sam",
)
TASKS = ("CoLA", "STS-B", "MRPC", "RTE", "CB", "COPA", "WSC")
RUNS = 10  # behind every mean of both tables
SPEARMAN = 0.4356  # as printed, of the ranks of stability and performance; which runs it was taken over is not known

SOURCES = {
    "table 1": "Fu et al., arXiv 2211.15583, Table 1: mean ± standard deviation of 10 seeds, as printed",
    "table 2": "Fu et al., arXiv 2211.15583, Table 2: mean ± standard deviation over 10 training sets, each without a "
    "random tenth of the rows, as printed",
    "figure 5": "Fu et al., arXiv 2211.15583, Figure 5, SAM: points recovered from the vector graphic of the authors' "
    "slides, ± 0.03; no table of them was printed",
    "combined": "Ding et al., Nature Machine Intelligence 5, 220–235 (2023), Table 2, all training rows: means over "
    "eight tasks of GLUE with RoBERTa-large, ± standard deviation where it is known, as printed",
}

# Mean and standard deviation by task, the last pair is AVG.
TABLES = {
    1: """
Full         58.36±1.74 89.80±.52  89.55±.81  76.03±2.14 88.93±2.37 67.70±4.41 53.10±6.18 74.78±2.60
Random       58.35±1.05 89.81±.11  88.73±.80  72.71±3.23 90.54±3.39 68.80±2.64 52.88±5.97 74.55±2.46
Mixout       58.66±1.96 90.15±.17  88.69±.60  77.55±1.64 86.51±4.13 71.30±4.84 52.98±6.78 75.12±2.88
BitFit       56.67±1.45 90.12±.14  87.35±.58  72.74±2.47 86.96±3.20 71.20±3.79 55.10±5.39 74.31±2.43
MagPruning   56.57±2.47 90.30±.14  88.09±.79  73.53±1.84 81.25±3.50 71.50±2.46 55.67±2.73 73.85±1.99
Adapter      62.11±1.22 90.05±.13  89.29±.60  76.93±2.05 87.32±4.62 69.50±2.54 57.02±5.27 76.03±2.35
LoRA         60.88±1.48 87.19±.51  89.53±.62  76.97±1.92 84.64±3.76 69.70±2.83 56.84±4.52 75.11±2.24
DiffPruning  58.53±1.49 89.59±.34  78.79±6.09 69.93±7.87 86.25±2.65 72.10±2.91 53.37±3.60 72.65±3.57
ChildPruning 60.00±1.29 89.97±1.51 87.19±3.86 75.76±4.38 86.61±3.22 69.40±4.00 55.59±3.81 74.93±3.15
SAM          60.89±.96  90.59±.14  88.84±.49  76.79±1.72 88.93±1.75 74.30±2.45 59.52±3.08 77.12±1.51
""",
    2: """
Full         60.74±1.89 90.11±.26  88.74±1.08 75.37±1.93 84.29±4.21 69.60±2.94 54.81±7.51 74.81±2.83
Random       56.00±1.84 89.79±.20  88.57±.72  73.00±2.01 89.29±4.92 70.30±2.69 56.87±4.29 74.83±2.38
Mixout       60.37±1.33 90.11±.13  88.50±.78  74.51±1.28 83.75±3.14 69.40±4.80 57.88±6.15 74.93±2.52
BitFit       55.26±.78  89.98±.15  86.87±1.27 71.36±1.71 91.29±2.27 71.80±3.92 55.29±9.90 74.55±2.86
MagPruning   56.45±1.80 90.26±.11  87.35±.85  72.24±2.14 84.46±3.58 69.20±3.54 59.71±3.88 74.24±2.27
Adapter      60.05±1.88 89.92±.19  88.79±.80  74.55±1.80 86.61±4.97 68.80±2.40 55.63±7.53 74.91±2.79
LoRA         61.46±1.27 86.73±.38  88.28±1.06 76.46±1.34 88.69±5.32 67.75±2.49 58.85±4.27 75.46±2.30
DiffPruning  58.36±1.45 89.52±.27  77.46±5.31 70.76±9.01 85.18±2.65 70.40±3.07 55.38±4.30 72.44±3.72
ChildPruning 59.40±2.30 89.33±3.23 88.43±.80  75.11±2.87 85.71±4.07 70.30±4.54 54.04±7.24 74.62±3.58
SAM          59.52±1.12 90.45±.12  88.79±.69  75.74±1.27 86.79±4.39 74.00±2.79 59.52±3.32 76.40±1.96
""",
}

# The deviation of 0 at STS-B's least p looks like a single run: the sparse end may not have all ten.
DENSITIES = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
FIGURE_5 = dict(
    mean="""
CoLA  56.86 56.83 57.47 60.04 60.90 61.00 60.89 60.27 61.12 60.19
MRPC  87.98 88.14 88.32 88.56 88.84 88.87 89.29 89.05 89.14 88.77
RTE   72.69 73.33 75.16 75.06 75.33 76.75 76.39 75.20 76.03 76.07
STS-B 90.39 90.54 90.67 90.67 90.58 90.56 90.61 90.52 90.53 90.44
CB    91.25 88.39 88.04 89.64 88.04 88.22 86.07 85.36 84.11 82.32
COPA  69.30 71.20 71.10 71.80 72.50 74.00 73.40 72.70 73.10 71.70
WSC   57.12 59.04 60.48 58.94 59.14 58.66 55.77 56.73 57.98 53.46
AVG   75.08 75.35 75.89 76.39 76.48 76.87 76.06 75.69 76.00 74.71
""",
    std="""
CoLA  1.92 2.46 2.86 3.31 0.96 1.07 0.96 1.03 1.42 2.16
MRPC  1.10 0.79 0.90 0.60 0.49 0.77 0.85 0.63 1.08 0.81
RTE   2.41 3.28 2.90 1.52 2.31 1.02 0.86 1.44 1.52 0.82
STS-B 0.00 0.10 0.13 0.11 0.17 0.21 0.18 0.21 0.11 0.36
CB    4.62 2.91 2.77 3.27 5.05 2.14 2.62 4.29 3.14 3.52
COPA  3.44 3.22 1.70 3.79 4.78 2.49 2.73 3.98 3.14 5.00
WSC   4.43 4.39 4.54 4.24 4.20 2.54 3.33 3.96 4.53 5.16
AVG   2.56 2.45 2.26 2.41 2.57 1.46 1.65 2.22 2.13 2.55
""",
    train="""
CoLA  70.09 73.72 77.15 90.13 nan 98.53 98.87 98.86 99.17 99.08
MRPC  95.76 96.57 96.78 96.85 nan 97.66 99.53 99.46 99.87 99.43
RTE   92.91 97.85 98.68 99.33 nan 99.98 99.96 100.0 99.96 99.99
WSC   57.33 66.48 84.59 84.47 nan 93.76 98.61 98.43 98.53 98.11
""",
)

# Which of adapter, BitFit and prompt are tuned together, the tunable share in %, and the mean without and with a
# manual template.
COMBINED = """
none                   0     23.7     43.4
adapter                1.75  87.4±.4  87.4
bitfit                 0.09  86.6±.4  86.8
prompt                 0.003 77.7±1.2 77.4±3.0
adapter bitfit         1.84  87.1±.2  87.3
adapter prompt         1.76  86.6±.4  86.9
bitfit prompt          0.09  86.5±.6  86.9
adapter bitfit prompt  1.85  87.0±.3  86.8
"""


def table(number=1, average=False):
    """Table 1 (other seeds) or 2 (other training data) as a frame (method, task, mean, std), in the paper's order.

    Methods have the registry's names. average: with the printed AVG as one more task; its std is the mean of the
    tasks' own. PeftlabError for another table.
    """
    choose(str(number), TABLES, "table of the paper")
    rows = pd.DataFrame(_rows(int(number)), columns=["method", "task", "mean", "std"])
    return rows if average else rows[rows["task"] != "AVG"].reset_index(drop=True)


def _rows(number):
    for line in TABLES[number].strip().splitlines():
        name, *cells = line.split()
        for task, cell in zip((*TASKS, "AVG"), cells, strict=True):
            yield NAMES[name], task, *map(float, cell.split("±"))


def sweep(average=False):
    """Figure 5 as a frame (p, task, mean, std, train): SAM on test, and its mean on the training rows.

    train is NaN where no point was recovered. average: with the figure's own AVG curve as one more task.
    """
    lists = {column: {line.split()[0]: line.split()[1:] for line in text.strip().splitlines()}
             for column, text in FIGURE_5.items()}  # fmt: skip
    missing = ["nan"] * len(DENSITIES)
    value = lambda column, task, i: float(lists[column].get(task, missing)[i])
    tasks = (*TASKS, "AVG") if average else TASKS
    rows = [(p, t, *(value(c, t, i) for c in FIGURE_5)) for t in tasks for i, p in enumerate(DENSITIES)]
    return pd.DataFrame(rows, columns=["p", "task", *FIGURE_5])


def combined():
    """Ding et al.'s study of combinations as a frame (parts, percent, template, mean, std), in points of 100.

    percent: of RoBERTa-large's numbers that are tuned; template: whether the text has a manual one; std is NaN where it
    is not known. There every part keeps its size as others come to it.
    """
    rows = []
    for line in COMBINED.strip().splitlines():
        *parts, percent, plain, template = line.split()
        for with_template, cell in enumerate((plain, template)):
            mean, _, std = cell.partition("±")
            rows.append((" ".join(parts), float(percent), bool(with_template), float(mean), float(std or "nan")))
    return pd.DataFrame(rows, columns="parts percent template mean std".split())


# What Fu et al.'s own figures say to their claims ------------------------------------------------


def printed(number):
    """Table 1 or 2 as a `resampling.Table`."""
    rows = table(number)
    wide = lambda column: rows.pivot(index="method", columns="task", values=column).loc[list(NAMES.values()), TASKS]
    return resampling.Table(list(NAMES.values()), list(TASKS), wide("mean").to_numpy(), wide("std").to_numpy())


def recovered():
    """Figure 5 as a `resampling.Table` whose methods are densities."""
    wide = lambda column: sweep().pivot(index="p", columns="task", values=column)[list(TASKS)].to_numpy()
    return resampling.Table(list(DENSITIES), list(TASKS), wide("mean"), wide("std"))


def published_status():
    """claim, statement, value_1, value_2, status, source: what the paper's own figures say to each of its claims.

    value_1, value_2: the number that `claims.verdicts` tries on runs, for Table 1 and for Table 2, in points where it
    is of scores (F-H5: for the recovered Figure 5; F-H8: for both tables at once). The paper prints no single runs, so
    there are no intervals and no verdicts.
    """
    tables = printed(1), printed(2)
    given = {"main": [[t] for t in tables], "main perturbed": [tables], "sweep": [[recovered()]], "jumps": []}
    rows = []
    for one in claims.CLAIMS:
        values = [float(one.stat(*those)) for those in given[" ".join(one.frames)]]
        status = " and ".join(f"{v:.3g}" for v in values) + _remark(one.name, *tables)
        rows.append(
            (one.name, one.statement, *(values + [np.nan] * 2)[:2], status, "recomputed from the paper's figures")
        )
    return pd.DataFrame(rows, columns="claim statement value_1 value_2 status source".split())


def _remark(name, one, two):
    """What the numbers are, and what else the figures say."""
    steadier = [int((claims.ratios(t) < 1).sum()) for t in (one, two)]
    without = [resampling.jackknife(claims.stability, t)[2]["sam"] for t in (one, two)]
    places = rankdata(-one.mean, "min", axis=0)[one.at("sam")]
    curve = recovered()
    least_error, least_std = (DENSITIES[v.mean(-1).argmin()] for v in (-curve.mean, curve.std))
    remarks = {
        "F-H1": " of 9 methods have a higher AVG",
        "F-H2": ": the median ratio; {} and {} of 9 are below 1".format(*steadier),
        "F-H3": ": the ratio of both standard deviations",
        "F-H4": ": the rank correlation, where {} is printed; without SAM {:.3f} and {:.3f}".format(SPEARMAN, *without),
        "F-H5": " points per decade of p, the least slope of both parabolas through the recovered Figure 5, where the "
        f"error is least at p = {least_error}, the deviation at {least_std}",
        "F-H6": "Figure 3 draws the training loss of diff pruning on CB; no numbers of it are printed",
        "F-H7": f" points above the best of the four; among the best three of ten in {(places <= 3).sum()} of 7 tasks",
        "F-H8": f": the rank correlation of AVG; first: {claims.first(one)} and {claims.first(two)}",
    }
    return remarks[name]
