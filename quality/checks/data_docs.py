"""Data Docs that read offline: Great Expectations' pages, with a stylesheet of ours in place of the ones from CDNs."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from quality.checks.report import QualityReport
from storage.files import make_tree_private, replace_folder, scratch_folder

_STYLE = (Path(__file__).parent / "data_docs.css").read_text(encoding="utf-8")
# What a browser would fetch: stylesheets, icons, scripts and images, wherever they come from.
_FETCHED = re.compile(
    r"<link\b[^<>]*+>|<script\b[^<>]*?\bsrc=[^<>]*+>\s*</script>|<img\b[^<>]*+>|"
    r"<iframe\b(?:(?!<iframe\b|</iframe>).)*+</iframe>",
    re.DOTALL | re.IGNORECASE,
)
# What is left of their scripts needs jQuery, and their inline styles import web fonts.
_INLINE = re.compile(
    r"<script\b(?:(?!<script\b|</script>).)*+</script>|<style\b(?:(?!<style\b|</style>).)*+</style>",
    re.DOTALL | re.IGNORECASE,
)
# The way to the index, from the depth of their folders; what else their pages link to (their suites, their newsletter)
# is not there.
_INDEX = re.compile(r'href="(?:\.\./)*index\.html"', re.IGNORECASE)
_ELSEWHERE = re.compile(
    r'<a\b[^<>]*?href="(?!#|index\.html")[^"<>]*+"[^<>]*+>((?:(?!</?a\b).)*+)</a>', re.DOTALL | re.IGNORECASE
)


def render_page(result: Any) -> str:
    """The page of one validation result, readable offline, for a folder whose index is `index.html`."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    return make_offline(_view().render(ValidationResultsPageRenderer().render(result)))


@cache
def _view() -> Any:
    from great_expectations.render.view.view import DefaultJinjaPageView

    return DefaultJinjaPageView()  # it compiles its templates: once a process


def write_data_docs(target: Path, report: QualityReport, pages: Mapping[str, str]) -> None:
    """Put an index of `report` and a page for each profile's name in place of the folder `target`, whole or not."""
    with scratch_folder(target.parent, f".{target.name}-") as scratch:
        site = scratch / "site"
        site.mkdir()
        for name, page in pages.items():
            (site / f"{name}.html").write_text(page, encoding="utf-8")
        (site / "index.html").write_text(_index(report, pages), encoding="utf-8")
        make_tree_private(site)
        replace_folder(site, target)


def make_offline(page: str) -> str:
    """`page` with every reference that a browser would fetch taken out, and our stylesheet in."""
    page = _INLINE.sub("", _FETCHED.sub("", page))
    page = _ELSEWHERE.sub(r"\1", _INDEX.sub('href="index.html"', page))
    return page.replace("</head>", f"<style>\n{_STYLE}</style>\n</head>", 1)


def _index(report: QualityReport, pages: Mapping[str, str]) -> str:
    """Great Expectations' own fills its tables by scripts from a CDN."""
    rows = "".join(
        f'<tr><td class="{failure.severity}">{failure.severity}</td><td>{html.escape(failure.profile)}</td>'
        f"<td>{html.escape(failure.expectation)}</td><td>{html.escape(', '.join(failure.where[:20]))}</td>"
        f"<td>{html.escape(str(failure.observed)[:300])}</td></tr>"
        for failure in report.failures
    )
    missed = {failure.profile for failure in report.failures}
    links = "".join(
        f'<li><a href="{name}.html">{html.escape(name)}</a>: {"not met" if name in missed else "met"}</li>'
        for name in pages
    )
    verdict = "passed" if report.success else "failed"
    table = (
        f"<table><thead><tr><th>Severity</th><th>Profile</th><th>Expectation</th><th>Where</th><th>Observed</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
        if rows
        else "<p>Every expectation is met.</p>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data quality: {verdict}</title><style>\n{_STYLE}</style></head><body><main>"
        f'<h1>Data quality: <span class="{verdict}">{verdict}</span></h1>'
        f"<p>{report.checked} expectations checked, {len(report.failures)} not met.</p>{table}"
        f"<h2>Profiles</h2><ul>{links}</ul></main></body></html>\n"
    )
