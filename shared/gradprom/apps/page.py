"""The demo's index.html: plain, readable on a telephone, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from gradprom.apps.evaluation import Comparison
from gradprom.apps.figures import ERROR_LIMIT
from gradprom.apps.report import HEADINGS, rows, sentences

STYLE = """
body { font: 17px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 1.5rem 0; } figcaption { color: #333; margin-top: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .25rem .7rem; text-align: left; white-space: nowrap; }
thead th { border-bottom: 2px solid #333; } tbody tr:first-child > * { border-top: 1px solid #888; }
tr.ours > * { font-weight: 600; background: #eef5fb; }
.note { border-left: 4px solid #D55E00; padding: .2rem .8rem; background: #fdf3ec; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; overflow-wrap: anywhere; }
"""

CAPTIONS = {
    "contact_sheet.png": (
        "The middle of the held-out block (of a volume: axial, coronal and sagittal plane). The "
        "grey window is 0 to 1 in every picture; the patient's right is on the left, anterior is "
        "up. Look for noise that is left, for blurred sulci, and for the grey that Rician noise "
        "leaves in the air around a filtered brain. Figures: PSNR of this image inside the brain."
    ),
    "detail.png": (
        "The same pictures, a ventricle and the cortex beside it. A good method keeps the edge of "
        "the ventricle, the caudate nucleus beside it and the stripes of the cortex; patches and "
        "flat areas that the clean picture does not have are the price of strong filtering."
    ),
    "error_maps.png": (
        f"Method minus truth, both clipped to [0, 1]; every map has the scale of the bar, "
        f"±{ERROR_LIMIT} of the range. Red is too bright, blue too dark. Errors that follow "
        "anatomy are lost structure; grain is noise that is left. Figures: PSNR of this image, "
        "whole image."
    ),
    "segmentation.png": (
        "What the bundle's recogniser makes of each picture, and the labels of the atlas. It was "
        "trained on clean images of the training block and is the same for every column, so "
        "differences come from the pictures. A copy of it guided the gate: this shows whether "
        "that task was helped, not whether another recogniser would be."
    ),
    "training.png": (
        "Training with the gate, epoch by epoch: the cosine of the gradients of enhancement (g) "
        "and recognition (h), the share of steps in which they agreed and h was added, the "
        "length of h before its weight against that of g, and the PSNR of both arms on the "
        "validation block, at Gaussian 0.10 in the units of the network."
    ),
}


def page(
    results: Sequence[Comparison],
    pictures: Sequence[str],
    settings: Mapping[str, str],
    gated: str,
    other: str,
) -> str:
    """The whole page.

    Args:
        results: of the held-out block.
        pictures: files beside the page, each a key of `CAPTIONS`.
        settings: what stands in the list at the end.
        gated, other: names of the two arms.
    """
    count = len(next(iter(results[0].images.values())))
    what = "images" if count > 1 else "volume"
    figures = "\n".join(_figure(name) for name in pictures)
    points = "\n".join(f"<li>{escape(text)}</li>" for text in sentences(results, gated, other))
    listing = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in settings.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>GradProm demo</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Denoising brain MRI with and without GradProm</h1>
<p>Two networks were trained on this machine to remove noise from the MNI152 T1 atlas, with the
same steps, seed and data. <b>{escape(other)}</b> learnt to denoise and nothing else.
<b>{escape(gated)}</b> also had the gradient of a tissue segmentation, in just those steps in which
it agreed with the gradient of denoising. Both are compared on a block of slices that neither
training nor the choice of settings has seen.</p>
<p class="note">Not for diagnosis. An average of 152 heads is smoother than any patient's scan, and
figures on it do not carry over to other images.</p>
<ul>
{points}
</ul>
<h2>Figures on the held-out block</h2>
<div class="wide">
{_table(results, gated)}
</div>
<p>Mean ± standard deviation over {count} {what}; neighbouring slices resemble each other, so
the deviation is the spread over the block, not an error of the mean. PSNR in dB. Both sides are
clipped to [0, 1]. <b>Image</b> counts the black background, which is most of the picture and easy;
<b>brain</b> counts the brain alone. Tissue Dice: mean of CSF, grey and white matter as the
recogniser segments each picture. The Gaussian filter's width is the best for each picture, chosen
by looking at the truth, once for the image and once for the brain; its SSIM belongs to the same
picture, its Dice to the one for the image. The filters know nothing of the offset that Rician noise
gives to air; the networks can learn it. <b>Clean</b> is what the recogniser makes of the truth.</p>
<h2>Pictures</h2>
{figures}
<h2>How it was made</h2>
<dl>
{listing}
</dl>
<p>All figures with their settings: <a href="metrics.json">metrics.json</a></p>
</body>
</html>
"""


def _figure(name: str) -> str:
    caption = CAPTIONS[name]
    alternative = escape(caption.split(". ")[0], quote=True)
    return (
        f'<figure><a href="{name}"><img src="{name}" alt="{alternative}"></a>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(results: Sequence[Comparison], gated: str) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in ("Noise", "Method", *HEADINGS))
    bodies = []
    for noise, lines in groupby(rows(results), key=lambda line: line[0]):
        group = [line[1:] for line in lines]
        first = f'<th rowspan="{len(group)}" scope="rowgroup">{escape(noise)}</th>'
        bodies.append("<tbody>")
        for place, line in enumerate(group):
            ours = ' class="ours"' if line[0] == gated else ""
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in line)
            bodies.append(f"<tr{ours}>{first if place == 0 else ''}{cells}</tr>")
        bodies.append("</tbody>")
    return f"<table><thead><tr>{head}</tr></thead>{''.join(bodies)}</table>"
