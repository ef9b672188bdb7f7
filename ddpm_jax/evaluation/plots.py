"""Scores and distances as pictures."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence

from ddpm_jax.evaluation.report import Score
from ddpm_jax.files import atomic_write

# Of Okabe & Ito (2008), told apart by colour-blind people too; in print, by markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^v"
_LINE = {"linewidth": 1.6, "markersize": 4.5}
_GREY = "#777777"
_PALE = "#E4E4E4"
_APART = 0.07  # of the height of a panel: what the names of two floors need
_WIDE = 15  # a panel whose values differ by more than this factor is logarithmic


def plot(path: str | os.PathLike, scores: Sequence[Score]) -> None:
    """Draws quality against network calls, as a PNG, whole or not at all.

    There is one panel for each metric and one line for each sampler, the subject up to
    its colon. What takes no calls, such as held-out data, is a dashed line: how good
    samples can get. Values that are not finite are left out.

    Args:
      path: the file, replaced where it exists; its folder is created.
      scores: of one protocol.

    Raises:
      ValueError: if no finite score has network calls.
    """
    scores = [score for score in scores if math.isfinite(score.value)]
    samplers = dict.fromkeys(_sampler(score) for score in scores if score.network_calls)
    metrics = dict.fromkeys(score.metric for score in scores if score.network_calls)
    if not metrics:
        raise ValueError("no finite score has network calls: there is nothing to plot")
    styles = zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)
    styles = dict(zip(samplers, styles, strict=False))
    rows = math.ceil(len(metrics) / 3)
    columns = math.ceil(len(metrics) / rows)
    figure, panels = _figure(rows, columns)
    for panel, metric in zip(panels, metrics, strict=False):
        _draw(panel, metric, [s for s in scores if s.metric == metric], styles)
    for spare in panels[len(metrics) :]:
        spare.remove()
    calls = [score.network_calls for score in scores if score.network_calls]
    margin = max(1.2, 1.6 / math.sqrt(max(calls) / min(calls)))  # 1, 2 or 5 fits in
    panels[0].set_xlim(min(calls) / margin, max(calls) * margin)
    _finish(path, figure, "network calls", styles)


def plot_distances(path: str | os.PathLike, sets: Mapping[str, Sequence]) -> None:
    """Draws how near sets of images lie to the training set, as `plot` does.

    Args:
      path: the file.
      sets: by its name, the distance of each image to its nearest training image.
        Copies are at 0; samples that are no copies follow the curve of unseen images.
    """
    figure, (panel,) = _figure(1, 1)
    colours = itertools.cycle(_COLOURS)
    styles = {name: (next(colours), "") for name in sets}
    for name, (colour, _) in styles.items():
        panel.ecdf(sets[name], color=colour, **_LINE)
    panel.set_title("fraction within the distance", loc="left", fontsize=11)
    panel.update_datalim([(0, 0)])
    panel.autoscale_view()
    _finish(path, figure, "distance to the nearest training image", styles)


def _figure(rows, columns):
    """Makes a figure, and its panels in a list."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure((0.4 + 3.6 * columns, 0.8 + 2.6 * rows), dpi=200)
    figure.set_layout_engine("constrained", wspace=0.06, hspace=0.06)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for panel in panels:
        panel.tick_params(which="both", length=0, labelsize=8, labelbottom=True)
        panel.grid(color=_PALE, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(_GREY)
    return figure, panels


def _draw(panel, metric, scores, styles):
    """One metric: the lines of the samplers, then the floors."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_title(metric, loc="left", fontsize=11, parse_math=False)
    panel.set_xscale("log")
    low = min(score.value - _error(score) for score in scores)
    wide = 0 < low < max(score.value for score in scores) / _WIDE
    if wide:
        panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis)[: 1 + wide]:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    curves = sorted(
        (score for score in scores if score.network_calls),
        key=lambda score: score.network_calls,
    )
    for name, (colour, marker) in styles.items():
        line = [score for score in curves if _sampler(score) == name]
        panel.errorbar(
            [score.network_calls for score in line],
            [score.value for score in line],
            [_error(score) for score in line],
            color=colour, marker=marker, elinewidth=1, **_LINE,
        )  # fmt: skip
    floors = {score.subject: score.value for score in scores if not score.network_calls}
    for value in floors.values():
        panel.axhline(value, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    panel.autoscale_view()  # else the heights are those before the last line
    if len({score.value for score in scores}) == 1:
        panel.set_ylim(scores[0].value - 0.5, scores[0].value + 0.5)
    lowest = -math.inf
    for name, value in sorted(floors.items(), key=lambda floor: floor[1]):
        at = panel.transAxes.inverted().transform(panel.transData.transform((1, value)))
        lowest = max(at[1], lowest + _APART)
        panel.text(
            1.02, lowest, name, transform=panel.transAxes, va="center",
            fontsize=8, color=_GREY, parse_math=False,
        )  # fmt: skip


def _finish(path, figure, label, styles):
    """Names the horizontal axis and, above the panels, the lines; writes the file."""
    from matplotlib.lines import Line2D

    legend = figure.legend(
        [Line2D([], [], color=c, marker=m, **_LINE) for c, m in styles.values()],
        styles, loc="outside upper left", ncols=6, frameon=False, fontsize=9,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.supxlabel(label, fontsize=10)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def _sampler(score):
    return score.subject.partition(":")[0]


def _error(score):
    """What to draw as an error bar."""
    return score.error if score.error and math.isfinite(score.error) else 0.0
