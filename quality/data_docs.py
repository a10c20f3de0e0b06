"""Data Docs that read offline: Great Expectations' pages, with a stylesheet of ours in place of the ones from CDNs."""

from __future__ import annotations

import html
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quality.report import QualityReport

_STYLE = (Path(__file__).parent / "data_docs.css").read_text(encoding="utf-8")
# What a browser would fetch: stylesheets, icons, scripts and images, wherever they come from.
_FETCHED = re.compile(
    r"<link\b[^>]*>|<script\b[^>]*\bsrc=[^>]*>\s*</script>|<img\b[^>]*>|<iframe\b.*?</iframe>", re.DOTALL | re.IGNORECASE
)
# What is left of their scripts needs jQuery, and their inline styles import web fonts.
_INLINE = re.compile(r"<script\b.*?</script>|<style\b.*?</style>", re.DOTALL | re.IGNORECASE)
_ELSEWHERE = re.compile(r'<a\b[^>]*href="https?://[^"]*"[^>]*>(.*?)</a>', re.DOTALL | re.IGNORECASE)


class Pages:
    """The pages of one run: what was judged, and the summary that the index shows."""

    def __init__(self) -> None:
        self.judged: list[tuple[str, bool]] = []
        self.summary: QualityReport | None = None

    def add(self, name: str, success: bool) -> None:
        self.judged.append((name, success))


@contextmanager
def publish_data_docs(target: Path | None, context: Any) -> Iterator[Pages]:
    """Let `context` build its Data Docs aside; at the end put them, made readable offline, in place of `target`.

    With no target no page is built. If the body raises, `target` stays as it was.
    """
    pages = Pages()
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    if target is None:
        yield pages
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        site_folder = Path(scratch) / "site"
        context.add_data_docs_site(
            "local",
            {
                "class_name": "SiteBuilder",
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(site_folder),
                },
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        yield pages
        site_folder.mkdir(exist_ok=True)
        shutil.rmtree(site_folder / "static", ignore_errors=True)
        for page in site_folder.rglob("*.html"):
            page.write_text(make_offline(page.read_text(encoding="utf-8")), encoding="utf-8")
        (site_folder / "index.html").write_text(_index(site_folder, pages), encoding="utf-8")
        if target.exists():
            target.rename(Path(scratch) / "old")
        site_folder.rename(target)


def make_offline(page: str) -> str:
    """`page` with every reference that a browser would fetch taken out, and our stylesheet in."""
    page = _INLINE.sub("", _FETCHED.sub("", page))
    page = _ELSEWHERE.sub(r"\1", page)
    return page.replace("</head>", f"<style>\n{_STYLE}</style>\n</head>", 1)


def _index(site: Path, pages: Pages) -> str:
    """Theirs fills its tables by scripts from a CDN, so the index is ours."""
    report = pages.summary
    assert report is not None
    rows = "".join(
        f'<tr><td class="{failure.severity}">{failure.severity}</td><td>{html.escape(failure.profile)}</td>'
        f"<td>{html.escape(failure.expectation)}</td><td>{html.escape(', '.join(failure.where[:20]))}</td>"
        f"<td>{html.escape(str(failure.observed)[:300])}</td></tr>"
        for failure in report.failures
    )
    links = "".join(
        f'<li><a href="{page.relative_to(site).as_posix()}">{html.escape(name)}</a>: {"met" if success else "not met"}</li>'
        for name, success in pages.judged
        for page in sorted(site.glob(f"validations/{name}/**/*.html"))
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
