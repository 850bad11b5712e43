"""The page in a real browser, headless: what a reader sees, hears and does there."""

import dataclasses
import shutil

import pytest
from conftest import likely_ids, make_llama, make_tokenizer

from toedit_collate import EditPolicy, Prior, inspect_edits
from toedit_collate.inspection.findings import THRESHOLDS

selenium = pytest.importorskip("selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

# Nothing of it can be an element of the page.
HOSTILE = "<b id=evil>bold</b></script><img src=x onerror=document.title='evil'> & <!--x-->"
TEXTS = [HOSTILE, "the river 1234 runs past the mill\n\tto the sea"]
POLICIES = {
    "often": EditPolicy(threshold=0.2, top_k=20, temperature=2.0),
    "below": EditPolicy(region="below", threshold=0.1),
    "drop": EditPolicy(threshold=0.5, drop_below=0.01),
    "held": EditPolicy(threshold=0.2, protect=lambda ids, tokenizer: ids % 2 == 0),
    "labels": EditPolicy.distill(num_draws=3),
}


@pytest.fixture(scope="module")
def seen():
    model = make_llama()
    ids = likely_ids(model, 13, 60, seed=1)
    rows = [{"input_ids": one.tolist()} for one in ids]
    rows[1:1] = [{"text": text} for text in TEXTS]
    seen = inspect_edits(Prior(model, make_tokenizer()), rows, POLICIES)
    seen.documents.sort(key=lambda document: int(document.name.split()[1]))  # "row 3 (from 0)"
    return seen


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, seen, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(seen.to_html(), encoding="utf-8")
    browser.get(file.as_uri())
    show_only_marked(browser, False)
    put(browser, "policy", 0)
    return browser


def show_only_marked(page, wanted):
    box = page.find_element(By.ID, "only")
    if box.is_selected() != wanted:
        page.execute_script("arguments[0].click()", box)


def marks(page, mark):
    return page.find_elements(By.CSS_SELECTOR, f"[data-mark={mark}]")


def put(page, name, value):
    """Set a control as a reader does, with the event that follows."""
    page.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}));"
        "e.dispatchEvent(new Event('change', {bubbles: true}));",
        name, str(value),
    )  # fmt: skip


def number_of(seen, name, what, documents=10):
    edits = [document.edits[name] for document in seen.documents[:documents]]
    if what == "changed":
        return sum(len(edit.changed) for edit in edits)
    if what == "removed":
        return sum(len(edit.removed) for edit in edits)
    if what == "protected":
        return sum(int(edit.protected.sum()) for edit in edits)
    return sum(int(edit.selected.sum()) - len(edit.changed) for edit in edits)


def test_it_loads_whole_and_asks_no_network(page):
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [
        entry["message"]
        for entry in page.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"] and '"url":"http' in entry["message"]
    ]
    assert requests == []
    assert page.find_element(By.ID, "count").text.startswith("10 of 15 matching")
    page.find_element(By.ID, "more").click()
    assert page.find_element(By.ID, "count").text.startswith("15 of 15 matching")
    assert not page.find_element(By.ID, "more").is_displayed()


def test_texts_of_documents_are_text(page):
    assert page.find_elements(By.ID, "evil") == []
    assert page.title.startswith("toedit inspect")
    shown = page.execute_script(
        "return [...document.querySelectorAll('article')[1].querySelectorAll('[data-i]')]"
        ".map(e => e.querySelector('ins') ? e.querySelector('del').textContent : e.textContent)"
        ".join('')"
    )
    assert shown == f"{HOSTILE}<|eos|>"


@pytest.mark.parametrize(
    ("number", "name", "mark", "what"),
    [
        (0, "often", "changed", "changed"),
        (0, "often", "kept", "kept"),
        (1, "below", "changed", "changed"),
        (2, "drop", "removed", "removed"),
    ],
)
def test_marks_are_the_edits(page, seen, number, name, mark, what):
    put(page, "policy", number)
    assert len(marks(page, mark)) == number_of(seen, name, what) > 0


def test_marks_differ_by_line_and_not_by_characters(page):
    changed = marks(page, "changed")[0]
    old = changed.find_element(By.TAG_NAME, "del")
    new = changed.find_element(By.TAG_NAME, "ins")
    assert "line-through" in old.value_of_css_property("text-decoration-line")
    assert "underline" in new.value_of_css_property("text-decoration-line")
    assert old.value_of_css_property("color") != new.value_of_css_property("color")
    kept = marks(page, "kept")[0].find_element(By.TAG_NAME, "span")
    assert "underline" in kept.value_of_css_property("text-decoration-line")
    assert not set(changed.text) & set("\u27e6\u27e7{}")


def test_protected_tokens_are_shown_when_asked(page, seen):
    put(page, "policy", 3)
    assert marks(page, "protected") == []
    put(page, "marks", "protected")
    assert len(marks(page, "protected")) == number_of(seen, "held", "protected") > 0


def test_it_opens_on_redrawn_labels_and_says_that_the_text_stays(browser, seen, tmp_path):
    (tmp_path / "page.html").write_text(seen.to_html(), encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    select = browser.find_element(By.ID, "policy")
    assert select.find_elements(By.TAG_NAME, "option")[4].is_selected()
    assert browser.find_element(By.ID, "advice").text.startswith("Recommendation\nUse 'labels'")
    how = browser.find_element(By.ID, "how").text
    assert "changes labels only" in how
    assert "Each label becomes 3 draws" in how
    show_only_marked(browser, False)
    assert len(marks(browser, "changed")) == number_of(seen, "labels", "changed") > 0
    # Without the second line, the text is that of the document.
    text = browser.execute_script(
        "return [...document.querySelectorAll('article')[1].querySelectorAll('[data-i]')].map("
        "e => { const c = e.cloneNode(true); c.querySelectorAll('rt').forEach(r => r.remove());"
        " return c.textContent; }).join('')"
    )
    assert text.replace("\u00b7", "") == f"{HOSTILE}<|eos|>"
    label = marks(browser, "changed")[0].find_element(By.TAG_NAME, "rt")
    token = marks(browser, "changed")[0].find_element(By.TAG_NAME, "ruby")
    assert label.rect["y"] > token.rect["y"]  # below the text
    assert not browser.find_element(By.ID, "threshold").is_displayed()


def test_what_a_run_edited_has_its_own_heading_and_counts(browser, seen, tmp_path):
    counts = {"scored": 1000, "selected": 77, "selected_share": 0.077, "changed": 5,
              "changed_share": 0.005}  # fmt: skip
    done = dataclasses.replace(
        seen, policies={"often": None}, tallies={"often": seen.tallies["often"]},
        documents=[
            dataclasses.replace(one, edits={"often": one.edits["often"]}) for one in seen.documents
        ],
        run={"often": counts},
    )  # fmt: skip
    (tmp_path / "page.html").write_text(done.to_html(), encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.find_element(By.TAG_NAME, "h1").text == "What training edited"
    assert not browser.find_element(By.ID, "advice").is_displayed()
    assert "training selected 77 of 1,000" in browser.find_element(By.ID, "notes").text
    heads = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#policies th")]
    assert "changed" in heads
    assert "selected" not in heads
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_slider_marks_what_would_be_selected(page, seen):
    slider = page.find_element(By.ID, "threshold")
    assert "(this policy)" in page.find_element(By.ID, "share").text
    for threshold in (0.03, 0.7):
        put(page, "threshold", THRESHOLDS.index(threshold))
        expected = sum(
            int((document.probability >= threshold)[document.edits["often"].scored].sum())
            for document in seen.documents[:10]
        )
        found = sum(len(marks(page, mark)) for mark in ("changed", "kept", "would"))
        assert found == expected > 0
        assert f"{threshold}" in page.find_element(By.ID, "share").text
        assert slider.get_attribute("aria-valuetext") == page.find_element(By.ID, "share").text
    put(page, "threshold", 0)
    assert marks(page, "would")
    page.find_element(By.ID, "reset").click()
    assert marks(page, "would") == []
    slider.send_keys(Keys.ARROW_LEFT)  # by keyboard, too
    assert marks(page, "would") or marks(page, "kept")


def test_filters(page, seen):
    put(page, "kind", 0)  # digits
    digits = marks(page, "changed") + marks(page, "kept")
    assert all(any(c.isdigit() for c in mark.text) for mark in digits if mark.text)
    put(page, "kind", -1)
    put(page, "marks", "changed")
    assert marks(page, "kept") == []
    put(page, "marks", "all")
    put(page, "find", "RIVER 1234")
    assert page.find_element(By.ID, "count").text.startswith("1 of 1 matching")
    show_only_marked(page, True)  # of which it has none
    assert page.find_element(By.ID, "count").text.startswith("0 of 0 matching")
    show_only_marked(page, False)
    put(page, "find", "nothing has this")
    assert page.find_element(By.ID, "count").text.startswith("0 of 0 matching")


def test_pointing_shows_candidates(page, seen):
    mark = marks(page, "changed")[0]
    webdriver.ActionChains(page).move_to_element(mark).perform()
    tip = page.find_element(By.ID, "tip")
    assert tip.is_displayed()
    place = int(mark.get_attribute("data-i"))
    best = seen.documents[0].candidates[place][0]
    assert f"{best[1]:.2f}"[:3] in tip.text
    assert "became" in tip.text
    assert "most probable tokens" in tip.text


def test_by_keyboard_and_for_a_screen_reader(page):
    first = page.find_element(By.CSS_SELECTOR, ".text [tabindex='0']")
    assert len(page.find_elements(By.CSS_SELECTOR, "article:first-of-type [tabindex='0']")) == 1
    page.execute_script("arguments[0].focus()", first)
    assert page.find_element(By.ID, "tip").is_displayed()
    spoken = page.find_element(By.ID, "live")
    before = spoken.get_attribute("textContent")
    assert "P " in before
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element != first
    assert page.switch_to.active_element.get_attribute("data-mark")
    assert spoken.get_attribute("textContent") != before
    page.switch_to.active_element.send_keys(Keys.END)
    last = page.find_elements(By.CSS_SELECTOR, "article:first-of-type [data-mark]")[-1]
    assert page.switch_to.active_element == last
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.find_element(By.ID, "tip").is_displayed()


def test_names_roles_and_headings(page):
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if "role" in n}
    roles = {role for role, _ in named}
    assert {"main", "heading", "table", "slider", "combobox", "status", "image"} <= roles
    controls = ("slider", "combobox", "searchbox", "spinbutton", "checkbox", "button")
    assert all(name for role, name in named if role in controls)
    assert any(name.startswith("changed: ") for role, name in named if role == "button")
    assert any(name.startswith("Histogram of probabilities") for _, name in named)


def test_the_tables_hold_the_counts(page, seen):
    cells, compared = (
        page.execute_script(
            f"return [...document.querySelectorAll('{row} td')].map(e => e.title || e.textContent)"
        )
        for row in ("#kinds tr.all", "#policies tr.chosen")
    )
    assert cells == compared[: len(cells)]
    tally = seen.tallies["often"]
    tokens = tally.of(None, "tokens")
    assert cells[0] == f"{tokens:,}"
    assert cells[1] == f"{tally.of(None, 'selected'):,} of {tokens:,}"
    assert cells[2] == f"{tally.of(None, 'changed'):,} of {tokens:,}"
    bars = page.find_elements(By.CSS_SELECTOR, "#histogram rect")
    assert len(bars) == 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    body = page.find_element(By.TAG_NAME, "body")
    paper = body.value_of_css_property("background-color")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for selector in (
        "body",
        ".note",
        ".legend .old",
        ".legend .new",
        ".legend .kept",
        ".legend .protected",
    ):
        element = page.find_element(By.CSS_SELECTOR, selector)
        back = element.value_of_css_property("background-color")
        back = paper if back.replace(" ", "").endswith(",0)") else back
        # WCAG 2, level AA, for text of usual size.
        assert contrast(element.value_of_css_property("color"), back) >= 4.5, selector


def test_on_a_phone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        width, window = page.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert width <= window == 360
        scrolled = page.execute_script(
            "return [...document.querySelectorAll('table')].filter(e => e.offsetParent"
            " && e.getBoundingClientRect().right > window.innerWidth).length"
        )
        assert scrolled == 0
        mark = marks(page, "changed")[0]
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
        page.execute_script("arguments[0].click()", mark)
        tip = page.find_element(By.ID, "tip")
        assert tip.is_displayed()
        assert tip.value_of_css_property("position") == "fixed"
        assert tip.rect["width"] == 360
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(color):
    channels = [float(c) / 255 for c in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
