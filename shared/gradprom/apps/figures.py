"""The demo's pictures: contact sheet, details, error maps, segmentations, gate over training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gradprom.apps.evaluation import CLEAN, LABELS, TISSUES, Comparison
from gradprom.apps.training import Run

ERROR_LIMIT = 0.15
"""Error maps go from minus to plus this share of the range."""

# From Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
TISSUE_COLOURS = ("#0072B2", "#E69F00", "#F0E442")
ARM_COLOURS = ("#0072B2", "#D55E00")

CELL = 2.4  # inches that a picture is wide
FONT = 16
DPI = 100
MARGIN = 5  # pixels

Picture = Callable[[Comparison, str], np.ndarray]
Note = Callable[[Comparison, str], str]


def view(image: Tensor) -> np.ndarray:
    """A picture [rows, columns] of [1, H, W(, D)] in RAS order, hung as radiologists expect it.

    The patient's right is on the left, anterior is up. Of a volume: the middle axial plane, below
    it the middle coronal one and the middle sagittal one (anterior on the left), head up.
    """
    array = image[0].numpy()
    if array.ndim == 2:
        return array[::-1, ::-1].T
    x, y, z = (size // 2 for size in array.shape)
    planes = (array[::-1, ::-1, z].T, array[::-1, y, ::-1].T, array[x, ::-1, ::-1].T)
    width = max(plane.shape[1] for plane in planes)
    return np.concatenate([_padded(plane, width) for plane in planes])


def _padded(plane: np.ndarray, width: int) -> np.ndarray:
    """`plane` in the middle of `width` columns, a few black rows above and below."""
    left = (width - plane.shape[1]) // 2
    return np.pad(plane, ((3, 3), (left, width - plane.shape[1] - left)))


def _middle(found: Comparison, images: list[Tensor]) -> Tensor:
    """The middle one of the images, cut to what is not black in the truth and a few pixels more."""
    place = len(images) // 2
    filled = found.images[CLEAN][place].nonzero()
    first = (filled.amin(0) - MARGIN).clamp(min=0)
    last = filled.amax(0) + 1 + MARGIN
    box = (slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    return images[place][tuple(box)]


def _shown(found: Comparison, method: str) -> np.ndarray:
    """The picture of a method."""
    return view(_middle(found, found.images[method]))


def _detail(found: Comparison, method: str) -> np.ndarray:
    """A part of its axial plane: cortex, white matter and a ventricle."""
    image = _middle(found, found.images[method])
    picture = view(image if image.ndim == 3 else image[..., image.shape[-1] // 2])
    rows, columns = picture.shape
    side = min(rows, columns) // 2
    top, left = rows * 3 // 10, columns * 9 // 20
    return picture[top : top + side, left : left + side]


def _error(found: Comparison, method: str) -> np.ndarray:
    """Method minus truth, both clipped."""
    return _shown(found, method).clip(0, 1) - _shown(found, CLEAN).clip(0, 1)


def _tissue(found: Comparison, method: str) -> np.ndarray:
    """What the recogniser sees in the middle image."""
    return view(_middle(found, found.labels[method]))


def _note(figure: str, form: str) -> Note:
    """A note with the shown image's own figure."""

    def note(found: Comparison, method: str) -> str:
        values = found.scores.get(method, {}).get(figure, [math.inf])
        value = values[len(values) // 2]
        return form.format(value) if math.isfinite(value) else ""

    return note


def _sheet(
    results: Sequence[Comparison],
    methods: Sequence[str],
    picture: Picture,
    note: Note,
    room: tuple[float, float] = (0, 0),
    **look: Any,  # noqa: ANN401 - what imshow takes
) -> Figure:
    """A grid of one row per noise and one column per method, one look throughout.

    `room` is the width and height in inches for what stands beside and below.
    """
    rows, columns = picture(results[0], methods[0]).shape
    width = CELL * len(methods) + 0.4 + room[0]
    height = (CELL * rows / columns + 0.36) * len(results) + 0.35 + room[1]
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    grid = figure.subplots(len(results), len(methods), squeeze=False)
    for row, found in zip(grid, results, strict=True):
        for axes, method in zip(row, methods, strict=True):
            axes.imshow(picture(found, method), interpolation="nearest", **look)
            axes.set(xticks=[], yticks=[], frame_on=False)
            axes.set_xlabel(note(found, method), fontsize=FONT - 2)
        row[0].set_ylabel(found.noise.name, fontsize=FONT)
    for axes, method in zip(grid[0], methods, strict=True):
        axes.set_title(method, fontsize=FONT)
    return figure


def draw_results(results: Sequence[Comparison], folder: Path) -> list[str]:
    """Write the four sheets of pictures into `folder`; returns their file names."""
    methods = list(results[0].images)
    answers = [name for name in methods if name != CLEAN]
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
    brain = _note("psnr_brain", "brain {:.1f} dB")
    sheets = {
        "contact_sheet.png": _sheet(results, methods, _shown, brain, **grey),
        "detail.png": _sheet(results, methods, _detail, brain, **grey),
        "error_maps.png": _errors(results, answers),
        "segmentation.png": _segmentations(results, [*methods, LABELS]),
    }
    for name, figure in sheets.items():
        figure.savefig(folder / name)
    return list(sheets)


def _errors(results: Sequence[Comparison], methods: Sequence[str]) -> Figure:
    """Error maps with their colour bar."""
    norm = Normalize(-ERROR_LIMIT, ERROR_LIMIT)
    whole = _note("psnr", "image {:.1f} dB")
    figure = _sheet(results, methods, _error, whole, (1.5, 0), cmap="RdBu_r", norm=norm)
    scale = ScalarMappable(norm, "RdBu_r")
    bar = figure.colorbar(scale, ax=figure.axes, shrink=0.6, extend="both", pad=0.01)
    bar.set_label("method minus truth (share of the range)", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT - 2)
    return figure


def _segmentations(results: Sequence[Comparison], methods: Sequence[str]) -> Figure:
    """Label maps with their legend."""
    colours = ListedColormap(["black", *TISSUE_COLOURS])
    dice = _note("dice", "Dice {:.2f}")
    figure = _sheet(results, methods, _tissue, dice, (0, 0.6), cmap=colours, vmin=0, vmax=3)
    patches = [
        Patch(color=colour, label=tissue)
        for colour, tissue in zip(TISSUE_COLOURS, TISSUES[1:], strict=True)
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=3, fontsize=FONT, frameon=False
    )
    return figure


def draw_training(gated: Run, other: Run, path: Path) -> None:
    """Write what the gate did in each epoch, and both arms' validation PSNR, to `path`."""
    figure = Figure(figsize=(12, 8), dpi=DPI, layout="constrained")
    cosine, rate, ratio, quality = figure.subplots(2, 2).ravel()
    _line(cosine, gated, "gradprom_mean_cosine", "Cosine of the two gradients")
    cosine.axhline(0, color="0.4", linewidth=1)
    _line(rate, gated, "gradprom_on_rate", "Share of steps with the gate on")
    rate.set_ylim(-0.02, 1.02)
    _line(ratio, gated, "gradprom_mean_ratio", "|h| / |g|: recognition against enhancement")
    ratio.set_ylim(bottom=0)
    quality.set_title("PSNR on the validation block (dB)", fontsize=FONT)
    for run, colour in zip((gated, other), ARM_COLOURS, strict=True):
        _validation(quality, run, colour)
    quality.legend(fontsize=FONT - 2)
    for axes in (cosine, rate, ratio, quality):
        axes.set_xlabel("epoch", fontsize=FONT - 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=FONT - 2)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _line(axes: Axes, run: Run, key: str, title: str) -> None:
    """One attribute over the epochs of training; epochs in which it had no value are gaps."""
    lines = [line for line in run.history if line["phase"] == "train"]
    values = np.array([line.get(key) for line in lines], dtype=float)
    axes.plot([line["epoch"] for line in lines], values, color=ARM_COLOURS[0], linewidth=1.5)
    axes.set_title(title, fontsize=FONT)


def _validation(axes: Axes, run: Run, colour: str) -> None:
    """Whole-image (solid) and in-brain (broken) PSNR over the epochs with a validation."""
    lines = [line for line in run.history if line["phase"] == "validation"]
    epochs = [line["epoch"] for line in lines]
    for key, place, style in (("val_psnr", "image", "o-"), ("val_psnr_body", "brain", "s--")):
        values = np.array([line["metrics"].get(key) for line in lines], dtype=float)
        axes.plot(epochs, values, style, color=colour, label=f"{run.arm.name}, {place}")
