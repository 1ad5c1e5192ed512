"""The page in a real browser: no error, no request, something to see, and it works."""

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, NO_CHROMIUM, open_browser

pytest.importorskip("matplotlib")

from radtower.evaluation.reports.report import ReportOptions, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def test_the_page_opens_without_errors_and_without_asking_for_anything(
    browser, write_run, make_metric, tmp_path
):
    items = [
        make_metric(finding=name, value=value, n_positive=3)
        for name, value in (("low", 0.2), ("<script>throw 1</script>", None), ("high", 0.9), ("middle", 0.5))
    ]
    path = write_run(metrics=items, has_rows=False, phantom=True)
    page = write_report([path], tmp_path / "out", ReportOptions(num_resamples=5))[0]
    looks = []
    for width, scheme in ((1280, "light"), (390, "dark")):
        browser.open(page.as_uri(), width, scheme)
        with Image.open(browser.screenshot(tmp_path / "page.png")) as image:
            looks.append(np.asarray(image.convert("RGB")))
        # Nothing sticks out of the page on a phone: what is wide scrolls by itself.
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.errors == []
        assert {url.partition(":")[0] for url in browser.requests} == {"file"}
    light, dark = looks
    assert all(look.std() > 10 for look in looks)  # not blank
    assert light.mean() > 200 > 60 > dark.mean()
    order = "[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].innerText.trim())"
    click = "document.querySelectorAll('thead button')[2].click(), "
    hostile = "<script>throw 1</script>"
    assert browser.evaluate(order) == ["low", hostile, "high", "middle"]
    assert browser.evaluate(click + order) == ["high", "middle", "low", hostile]
    assert browser.evaluate(click + order) == ["low", "middle", "high", hostile]


def test_the_browser_would_have_seen_an_error_and_a_request(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<img src='https://radtower.invalid/x.png'><script>console.error('no'); throw Error('x')</script>"
    )
    browser.open(bad.as_uri(), 800)
    assert any("no" in error for error in browser.errors)
    assert any("Error: x" in error for error in browser.errors)
    assert "https://radtower.invalid/x.png" in browser.requests
