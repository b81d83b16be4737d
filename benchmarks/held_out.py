"""What do a bundle's shipped weights do on the atlas's held-out block, beside classical filters?

`python -m benchmarks.held_out [--dims 2|3] [--bundle DIR] [--seed 0] [--out FILE]`

Every case of the bundle's test part (see its docs/README.md) under Gaussian noise of 0.05 and 0.10
and Rician noise of 0.10 of the range; PSNR, SSIM over the whole image and inside the brain, both
sides clipped to [0, 1], and the Dice of the shipped recogniser on every image. The Gaussian filter
has the best width for each image, chosen by looking at the truth; non-local means has estimated
noise and the strength that does best on the validation part.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import fire

from gradprom.apps import evaluation, report, training
from gradprom.apps.demo import SHIPPED
from gradprom.data import mni152

BUNDLES = Path(__file__).parents[1] / "bundles"


def held_out(
    dims: int = 2, bundle: str | None = None, seed: int = 0, out: str | None = None
) -> None:
    """Print the table and, with `out`, write it as JSON."""
    folder = Path(bundle) if bundle else BUNDLES / f"gradprom_mni152_{dims}d"
    network = training.network(folder, "network_def", folder / "models" / "model.pt")
    recogniser = training.network(folder, "recogniser_def", folder / "models" / "recogniser.pt")
    enhancers = {SHIPPED: training.normalised(network)}
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        datalist = mni152.prepare(scratch, dims)
        cases = evaluation.read_cases(datalist, "test", 100)
        tuning = evaluation.read_cases(datalist, "validation", 4)
    for noise in evaluation.NOISES:
        strength = evaluation.tuned_strength(tuning, noise, seed)
        results.append(evaluation.compare(cases, noise, enhancers, recogniser, seed, strength))
    print(report.table_text(results))
    if out is not None:
        content = {"machine": report.machine(), "versions": report.versions(), "seed": seed}
        content |= {"bundle": folder.name, "results": [report.result(each) for each in results]}
        Path(out).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    fire.Fire(held_out)
