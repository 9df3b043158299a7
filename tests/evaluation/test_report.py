from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scdd.errors import DataFileError
from scdd.evaluation.evaluate import evaluate

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect", "image"}
HOSTILE = [
    "<script>alert(1)</script>",
    "A & B \"quoted\" 'single'",
    "$T_{H}17$ {{ 7*7 }}",
    "細胞 é " + "long " * 30,
]


class Page(HTMLParser):
    """Tags in balance, the text, and every attribute a browser would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "data", "poster", "action", "srcset"):
                self.fetched.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def judged(make_cells, distil, *, k=3, names=None, n_classes=4, n=12, **options):
    train, test = (make_cells(n, n_classes, names=names, n_genes=40, seed=s) for s in (1, 2))
    options = {"label_key": "cell_type", "classifiers": ["kNN", "linear SVM"], "seeds": 2, **options}
    return evaluate(distil(train, k), train=train, test=test, progress=False, **options)


@pytest.fixture(scope="module")
def report(make_cells, distil):
    return judged(make_cells, distil)


def test_page_is_whole_and_fetches_nothing(report, tmp_path):
    path = report.save(tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 5
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(value.startswith(("#", "data:image/png")) for value in page.fetched)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_page_shows_scores_recipes_seeds_and_provenance(report):
    text = Page(report.to_html()).text
    summary = report.summary().loc["distilled"]
    assert report.headline()[0] in text
    assert f"{100 * summary['recovery']:.1f} %" in text
    assert f"{summary['macro_f1']:.3f}" in text
    for name, description in report.details.recipes:
        assert name in text
        assert description in text
    for said in ('"method": "first cells"', "type 3", "40, log1p of counts per 10,000", "48 training cells"):
        assert said in text


def test_same_report_same_bytes(make_cells, distil, report):
    html = report.to_html()
    assert report.to_html() == html
    assert judged(make_cells, distil).to_html() == html
    assert not re.search(r"20\d\d-\d\d-\d\d", html)


def test_hostile_labels_are_escaped(make_cells, distil):
    html = judged(make_cells, distil, names=HOSTILE).to_html()
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert "<script>" not in html
    for name in HOSTILE:
        assert name.strip() in page.text
    assert "49" not in re.findall(r"\$T_\{H\}17\$ (\S+)", page.text)


def test_hostile_baseline_names_are_escaped(make_cells, distil):
    made = distil(make_cells(12, n_genes=40, seed=1), 4)
    report = judged(make_cells, distil, baselines={"<b>mine</b>": made})
    assert "<b>" not in report.to_html()
    assert "<b>" not in report._repr_html_()
    assert "&lt;b&gt;mine" in report._repr_html_()


def test_one_row_a_class(make_cells, distil):
    report = judged(make_cells, distil, k=1, seeds=1)
    html = report.to_html()
    assert Page(html).open == []
    assert "4 distilled rows (1 a class)" in html
    assert "nan" not in Page(html).text.lower()


def test_sixty_classes(make_cells, distil):
    report = judged(make_cells, distil, k=1, n=3, n_classes=60, seeds=1)
    page = Page(report.to_html())
    assert page.open == []
    for number in range(60):
        assert f"type {number}" in page.text
    # One line of text a class: the figure grows with their number.
    heights = [float(h) for h in re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', report.to_html())]
    assert max(heights) > 60 * 12


def test_without_train(make_cells, distil):
    cells = make_cells(12, n_genes=40)
    options = {"label_key": "cell_type", "classifiers": ["kNN"], "seeds": 1, "progress": False}
    page = Page(evaluate(distil(cells, 3), train=None, test=cells, **options).to_html())
    assert page.open == []
    assert "no whole data given" in page.text


def test_provenance_of_any_kind(make_cells, distil):
    train = make_cells(12, n_genes=40, seed=1)
    made = distil(train, 3)
    made.uns["scdd"] = {
        "seed": np.int64(3),
        "sizes": np.arange(3),
        "note": "</pre><script>",
        "path": Path("x"),
    }
    options = {"label_key": "cell_type", "classifiers": ["kNN"], "seeds": 1, "progress": False}
    page = Page(evaluate(made, train=train, test=make_cells(12, n_genes=40, seed=2), **options).to_html())
    assert '"note": "</pre><script>"' in page.text
    assert "script" not in page.tags


def test_nothing_half_written_is_left(report, tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("the old one")

    def full(self, text, **_):
        self.open("w").write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataFileError, match="No space left"):
        report.save(target)
    monkeypatch.undo()
    assert target.read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_folder_is_named(report, tmp_path):
    for write in (report.save, report.to_csv):
        with pytest.raises(DataFileError, match=r"nowhere does not exist; make it"):
            write(tmp_path / "nowhere" / "report.html")


def test_csv_holds_the_tidy_scores(report, tmp_path):
    pd.testing.assert_frame_equal(
        pd.read_csv(report.to_csv(tmp_path / "scores.csv"), dtype={"rows_per_class": str}), report.scores
    )


def test_plain_text(report):
    text = str(report)
    assert text.startswith(report.headline()[0])
    assert "whole data, class-weighted" in text
    assert "All 40 genes" in text
    assert repr(report) == "Report(4 sets, 2 classifiers)"
