"""Table, sentences, metrics.json and page."""

from __future__ import annotations

import json
import math
import re

import pytest

from gradprom.apps import page, report
from gradprom.apps.evaluation import CLEAN, Comparison


def test_mean_and_deviation() -> None:
    assert report.spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(math.sqrt(2))}
    assert report.spread([1.0]) == {"mean": 1.0, "sd": None}
    assert report.spread([1.0, math.inf]) == {"mean": None, "sd": None}


def test_table(results: list[Comparison]) -> None:
    rows = report.rows(results)
    assert len(rows) == len(results) * len(results[0].scores)
    assert {len(row) for row in rows} == {2 + len(report.HEADINGS)}
    clean = next(row for row in rows if row[1] == CLEAN)
    assert clean[2] == "-" and clean[6] == "1.000 ± 0.000"
    text = report.table_text(results)
    assert len(text.splitlines()) == len(rows) + 2
    assert all(row[2] in text for row in rows)


def test_sentences_give_differences_with_their_sign(results: list[Comparison]) -> None:
    found = report.sentences(results, "GradProm", "No gate (off)")
    assert len(found) == len(results)
    assert found[0].startswith("Gaussian 0.05: GradProm has ")
    means = [sum(results[0].scores[m]["psnr"]) / 2 for m in ("GradProm", "No gate (off)")]
    assert f"without the gate {means[0] - means[1]:+.2f} and" in found[0]


def test_result_is_json(results: list[Comparison]) -> None:
    text = json.dumps(report.result(results[0]), allow_nan=False)
    assert json.loads(text)["noise"] == {"kind": "gaussian", "sigma": 0.05}
    assert json.loads(text)["images"] == 2


def test_machine_and_versions_are_known() -> None:
    found = report.machine()
    assert found["cores"] >= 1 and found["processor"]
    assert set(report.versions()) == {"python", *report.PACKAGES}


def test_page(results: list[Comparison]) -> None:
    listing = {"Data <here>": "a & b"}
    html = page.page(results, list(page.CAPTIONS), listing, "GradProm", "No gate (off)")
    assert html.count("<table>") == 1 and "Not for diagnosis" in html
    assert html.count("<tr") == 1 + len(report.rows(results))
    assert html.count("<figcaption>") == len(page.CAPTIONS)
    assert "Data &lt;here&gt;" in html and "a &amp; b" in html
    links = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert links and not any("/" in link for link in links)
