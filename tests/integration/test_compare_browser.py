"""The comparison's page in a real browser, headless, without a network: what it draws, what boxes and lists do."""

import csv
import io
import json
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from fedpft.report.compare.comparison import compare
from fedpft.report.compare.files import write_comparison
from tests.browser import BLANK, CHROMIUM, Browser
from tests.run_folders import run_folder, sweep_folder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome in PATH")

PROBE = """(() => {
  %s
  const found = (() => { %s })();
  const [inner, scroll] = [innerWidth, document.documentElement.scrollWidth];
  return {...found, wrong, inner, scroll, requests: performance.getEntriesByType("resource").length};
})()"""
"""Helpers and a script, whose `return {...}` is what the test gets."""

HELPERS = """
  const plots = [...document.querySelectorAll(".js-plotly-plot")];
  const visible = plot => plot._fullData.filter(trace => trace.visible && trace.legendgroup);
  const shown = plot => new Set(visible(plot).map(trace => trace.legendgroup)).size;
  const rows = () => [...document.querySelectorAll("tr[data-group]")].filter(row => row.offsetParent).length;
"""
DRAWN = """(plots => plots.length && plots.every(plot => plot._fullLayout && plot.querySelector(".main-svg")))(
  [...document.querySelectorAll(".js-plotly-plot")])"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return write_comparison(compare([sweep_folder(folder / "runs")]), folder / "out")["page"]


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def probe(browser):
    """Return a function that opens a page and returns what a script says of it, with `wrong` and its widths."""

    def look(page, script, **screen):
        browser.open(BLANK)
        browser.open(page.as_uri(), **screen)
        browser.wait(DRAWN)
        return browser.ask(PROBE % (HELPERS, script))

    return look


PHONE = {"width": 390, "height": 800}
QUARTER = "fedpft, retained_ratio=0.25"


def test_it_opens_without_errors_or_requests_and_draws_its_figures(probe, page):
    found = probe(page, "return {plots: plots.length, groups: plots.map(shown), size: plots.map(p => p.clientHeight)}")
    assert (found["wrong"], found["requests"]) == ([], 0)
    assert found["plots"] == 7, "curves, costs, parallel coordinates, fidelity, partition, clients' accuracy, spread"
    assert found["groups"] == [3, 3, 3, 3, 0, 3, 3]
    assert min(found["size"]) > 100


def test_a_request_would_be_noticed_and_is_forbidden(probe, page):
    other = page.with_name("other.html")
    text = page.read_text(encoding="utf-8")
    other.write_text(
        text.replace("</main>", '<img src="https://example.org/x.png" alt=""></main>', 1), encoding="utf-8"
    )
    found = probe(other, "return {}")
    assert found["wrong"] == ["request: https://example.org/x.png"]


def test_a_box_hides_its_group_everywhere_and_brings_it_back(probe, page):
    script = """
      const box = document.querySelector(".filter input"), seen = () => [rows(), ...plots.map(shown)];
      const before = seen();
      box.focus(); box.click();
      const without = seen(), said = document.querySelector(".filter output").textContent;
      const verdicts = [...document.querySelectorAll("li[data-group]")].filter(line => line.offsetParent).length;
      box.click();
      return {before, without, said, verdicts, back: seen(), focused: document.activeElement === box};
    """
    found = probe(page, script)
    assert found["wrong"] == []
    assert found["before"] == found["back"] == [9, 3, 3, 3, 3, 0, 3, 3]
    assert found["without"] == [6, 2, 2, 2, 2, 0, 2, 2]
    assert found["said"] == "2 of 3 shown"
    assert found["verdicts"] == 2, "the baseline has none to hide"
    assert found["focused"]


def test_a_list_chooses_the_figure_and_the_filter_holds_for_it(probe, page):
    script = """
      const [model, price] = document.querySelectorAll("select");
      const title = () => [...document.querySelectorAll(".js-plotly-plot")].filter(plot => plot.offsetParent)[1]
        .layout.xaxis.title.text;
      const before = title();
      document.querySelector(".filter input").click();
      price.value = price.options[2].value; price.dispatchEvent(new Event("change"));
      const chosen = [...document.querySelectorAll(".js-plotly-plot")].filter(plot => plot.offsetParent)[1];
      return {before, after: title(), groups: shown(chosen), options: price.options.length};
    """
    found = probe(page, script)
    assert found["wrong"] == []
    assert (found["before"], found["after"]) == (
        "traffic of all rounds; less is better", "memory of a client; less is better",
    )  # fmt: skip
    assert (found["groups"], found["options"]) == (2, 6)


def test_all_that_acts_or_scrolls_can_be_reached_by_keyboard_and_has_a_name(probe, page):
    script = """
      const buttons = [...document.querySelectorAll("button")].filter(each => each.offsetParent);
      const acting = [...document.querySelectorAll("input, select, .wide"), ...buttons];
      const reached = acting.map(each => { each.focus(); return document.activeElement === each; });
      const named = acting.map(each => Boolean(each.getAttribute("aria-label") || each.closest("label")));
      const images = plots.every(plot => plot.getAttribute("role") && plot.getAttribute("aria-label"));
      return {reached, named, images};
    """
    found = probe(page, script)
    assert all(found["reached"])
    assert all(found["named"])
    assert len(found["reached"]) == 3 + 4 + 8 + 2 * 7
    assert found["images"]


def test_a_phone_shows_it_without_scrolling_sideways(probe, page):
    found = probe(page, "return {plots: plots.length}", **PHONE)
    assert (found["inner"], found["wrong"], found["plots"]) == (390, [], 7)
    assert found["scroll"] <= 390


def test_many_groups_of_long_names_fit_a_phone_and_their_verdicts_unfold_by_keyboard(probe, tmp_path):
    for index in range(6):
        settings = [f"align.neurons.update_ratio=0.{index + 1}25", f"align.neurons.interval={index % 3 + 1}"]
        run = run_folder(tmp_path / str(index), *settings, fm=0.7 + index / 100)
        (run / "partition.json").write_text(json.dumps({"label_names": ["no", "yes"], "label_histogram": [[index, 1]]}))
    page = write_comparison(compare([tmp_path]), tmp_path / "out")["page"]
    script = """
      const folded = document.querySelector("details"), before = folded.offsetHeight;
      folded.firstElementChild.focus();
      document.activeElement.click();
      return {before, after: folded.offsetHeight};
    """
    found = probe(page, script, **PHONE)
    assert (found["inner"], found["wrong"]) == (390, [])
    assert found["after"] > found["before"] + 100
    assert found["scroll"] <= 390


def test_a_dark_screen_has_light_text_also_in_figures(probe, page):
    script = """
      const style = getComputedStyle(document.body);
      return {text: style.color, back: style.backgroundColor, figure: plots[0]._fullLayout.font.color};
    """
    light = probe(page, script)
    dark = probe(page, script, dark=True)
    assert (light["back"], light["figure"]) == ("rgb(255, 255, 255)", "#1f2328")
    assert (dark["back"], dark["figure"]) == ("rgb(20, 24, 29)", "#e6edf3")
    assert dark["text"] != light["text"]


def test_every_figure_is_saved_as_svg_and_csv_without_a_request(probe, page):
    script = """
      const saved = [];
      HTMLAnchorElement.prototype.click = function () { saved.push([this.download, this.href]); };
      document.querySelector(".filter input").click();
      for (const button of document.querySelectorAll("[data-export]")) if (button.offsetParent) button.click();
      window.saved = saved;
      return {buttons: [...document.querySelectorAll("[data-export]")].filter(each => each.offsetParent).length, saved};
    """
    found = probe(page, script)
    assert (found["wrong"], found["requests"]) == ([], 0)
    tables = {name: unquote(place.partition(",")[2]) for name, place in found["saved"] if name.endswith(".csv")}
    assert len(tables) == found["buttons"] / 2 == 7
    (curves,) = (list(csv.DictReader(io.StringIO(text))) for name, text in tables.items() if "by-round" in name)
    assert {row["series"] for row in curves} == {QUARTER, f"{QUARTER} (band)", "fedot", "fedot (band)"}, "one is hidden"
    points = [(row["round"], float(row["accuracy"])) for row in curves if row["series"] == "fedot"]
    assert points == [("0", 0.25), ("2", pytest.approx(0.79))]
    (fidelity,) = (list(csv.DictReader(io.StringIO(text))) for name, text in tables.items() if "fidelity" in name)
    assert fidelity[0].keys() == {"series", "x", "layer", "value"}
    assert {row["x"] for row in fidelity} == {"fedot", QUARTER}
    assert {row["series"].partition(":")[0] for row in fidelity} == {
        "Hidden error", "Gradient cosine", "Gradient norm ratio",
    }  # fmt: skip
    (prices,) = (list(csv.DictReader(io.StringIO(text))) for name, text in tables.items() if "against" in name)
    assert {"accuracy", "accuracy above", "accuracy below"} <= prices[0].keys()
    assert not any("trace" in text or "Click to" in text for text in tables.values()), "all has a name"


def test_the_saved_image_is_an_svg_of_what_is_shown_dark_on_white(browser, probe, page):
    script = """
      HTMLAnchorElement.prototype.click = function () { document.body.dataset.saved = this.href; };
      document.querySelector('[data-export="svg"]').click()
    """
    assert probe(page, script, dark=True)["wrong"] == []
    image = unquote(browser.wait("document.body.dataset.saved").partition(",")[2])
    assert browser.ask("wrong") == []
    root = ElementTree.fromstring(image)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert int(root.get("width")) > 300
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "round" in texts
    assert "rgb(31, 35, 40)" in image


def test_two_lists_choose_the_runs_whose_differences_are_told(probe, page):
    script = """
      const [first, second] = document.querySelectorAll("[data-pair]");
      const told = () => [...document.querySelectorAll(".pair tbody tr")]
        .map(row => [...row.children].map(cell => cell.textContent));
      const before = told();
      second.selectedIndex = 1; second.dispatchEvent(new Event("change", {bubbles: true}));
      const seeds = told();
      second.selectedIndex = 0; second.dispatchEvent(new Event("change", {bubbles: true}));
      return {before, seeds, same: told(), said: document.querySelector(".pair output").textContent};
    """
    found = probe(page, script)
    assert found["wrong"] == []
    assert found["before"] == [["method.name", "fedpft", "fedot"], ["method.retained_ratio", "0.5", "0.25"]]
    assert found["seeds"] == [["seed", "1", "2"]]
    assert (found["same"], found["said"]) == ([], "nothing that they recorded differs")
