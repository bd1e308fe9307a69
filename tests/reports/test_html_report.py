"""The HTML report: its data, what of it a browser shows, and that text of the data does nothing."""

import base64
import hashlib
import io
import json
import re
import zlib

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.credit.alignment import edit_distance, edit_mask, edit_runs, edit_weights
from rlmec_trl.credit.preparation import RewardSettings, token_rewards
from rlmec_trl.data.errors import DatasetError
from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.reports import write_html
from rlmec_trl.reports.html_report import is_report, make_page, paper_settings
from rlmec_trl.reports.packing import Quantized, pack
from rlmec_trl.trainers.rlmec_config import RLMECConfig
from tests.reports.browser import Browser, needs_chromium
from tests.small_tokenizers import byte_level_tokenizer


BYTES = byte_level_tokenizer()
HOSTILE = [
    "<script>document.title = 'run'</script>",
    "</script><script>document.title = 'run'</script>",
    "<img src=x onerror=\"document.title = 'run'\">",
    "<a href=\"javascript:document.title='run'\">x</a> javascript:alert(1)",
    "--><!--<script> ]]> &lt;b&gt; \u2028\u2029 {{data}} ${1} \\u003c",
    "a\0b\x1b[31m\u202etxet\u200f\ufeff",
    "مرحبا بالعالم 12 שלום",
    "é 😀 👩‍👧 日本\tx\r\n  y\n",
]


def make_row(completion="1 + 2 = 4", rewrite="1 + 2 = 3", low=(), tokenizer=BYTES, **columns):
    """A scored sample, whose tokens at the places `low` have given probabilities."""
    ids = encode_completion(tokenizer, completion)
    probs = [0.9] * len(ids)
    for place, prob in dict(low).items():
        probs[place] = prob
    return {
        "prompt": "How many?",
        "reference": "1 + 2 = 3",
        "completion": completion,
        "completion_ids": ids,
        "correct": False,
        "token_probs": probs,
        "old_logps": [-0.5] * len(ids),
        "rewrite": rewrite,
        "rewrite_ids": None if rewrite is None else encode_completion(tokenizer, rewrite),
    } | columns


def unpack(page):
    """Header and arrays of a page, read in Python. Codes stay codes."""
    found = re.search(r'id="data">(.*?)</script>', page)[1]
    content = zlib.decompress(base64.b64decode(found))
    at = 4 + int.from_bytes(content[:4], "little")
    header, arrays = json.loads(content[4:at]), {}
    for entry in header["arrays"]:
        end = at + entry["size"] * entry["length"]
        planes = np.frombuffer(content[at:end], np.uint8).reshape(entry["size"], entry["length"])
        codes = sum(plane.astype(np.int64) << (8 * place) for place, plane in enumerate(planes))
        at, low = end, entry.get("low")
        arrays[entry["name"]] = codes if low is None else low + codes * (entry["high"] - low) / 65534
    assert at == len(content)
    return header, arrays


@pytest.fixture
def write(tmp_path):
    def write(rows, tokenizer=BYTES, name="report.html", **options):
        path = tmp_path / name
        write_html(path, Dataset.from_list(rows), tokenizer, **options)
        return path

    return write


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def rows_of(browser):
    return browser.run("[...document.querySelectorAll('.item')].map((item) => Number(item.dataset.row))")


def tip_of(browser):
    """What is shown of a token."""
    assert browser.run("!document.getElementById('tip').hidden")
    return dict(zip(browser.texts("#tip dt"), browser.texts("#tip dd"), strict=True))


# --- Data ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_edit_runs_are_the_script_that_masks_and_weights_are_made_of(source, target):
    runs, mask, rebuilt, place = edit_runs(source, target), [False] * len(target), [], 0
    for kind, start, source_length, target_length in runs:
        rebuilt += source[place:start]
        first, place = len(rebuilt), start + source_length
        rebuilt += target[first : first + target_length]
        for marked in range(first, first + (target_length or 1)):
            if marked < len(target):
                mask[marked] = True
        assert {"insert": source_length, "delete": target_length}.get(kind, source_length - target_length) == 0
    assert rebuilt + source[place:] == target
    assert mask == edit_mask(source, target)
    assert sum(max(run.source_length, run.target_length) for run in runs) == edit_distance(source, target)


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1), st.floats(0, 1))
def test_quantized_probabilities_are_close_and_flagged_as_before(values, baseline):
    values = np.array(values)
    codes = Quantized(values, 0.0, 1.0, keep_below=baseline).codes.astype(float)
    missing = np.isnan(values)
    assert ((codes == 65535) == missing).all()
    assert np.abs(codes / 65534 - values)[~missing].max(initial=0) < 2 / 65534
    assert ((codes / 65534 < baseline) == (values < baseline))[~missing].all()


def test_texts_that_are_no_utf8_and_large_numbers_can_be_packed():
    header = {"texts": ["\ud800", "\0", "</script>", "\u2028"]}
    arrays = {"small": np.array([0, 65535], np.uint32), "large": np.array([70_000, 3], np.uint32)}
    read, found = unpack(make_page(pack(header, arrays), "\ud800 & \0"))
    assert read["texts"] == header["texts"]
    assert {name: list(values) for name, values in found.items()} == {"small": [0, 65535], "large": [70_000, 3]}


@pytest.mark.parametrize("credit", ["all", "first_error"])
def test_rewards_and_weights_are_those_of_the_trainer(write, credit, tmp_path):
    rows = [make_row(low={2: 0.2, 3: 0.45, 4: None}), make_row(correct=True, low={1: 0.7, 2: 0.1})]
    args = RLMECConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", negative_credit=credit)
    settings = RewardSettings.from_config(args)
    header, arrays = unpack(write(rows, settings=settings).read_text())
    expected = [reward for row in rows for reward in token_rewards(row, row["correct"], settings)]
    assert arrays["rewards_0"] == pytest.approx(expected, abs=1e-5)
    assert (np.round(arrays["rewards_0"], 6) == 0).sum() == expected.count(0)
    assert header["settings"]["edited_weight"] == settings.edited_weight == 1.0


def test_the_default_settings_are_those_of_the_trainer(tmp_path):
    args = RLMECConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_length=None)
    found, expected = vars(paper_settings()), vars(RewardSettings.from_config(args))
    assert found | {"truncated_rewrites": expected["truncated_rewrites"]} == expected


def test_rewards_of_the_dataset_are_shown_as_they_are(write):
    row = make_row() | {"token_rewards": [3.0, -2.0] + [0.0] * (len(make_row()["completion_ids"]) - 2)}
    del row["token_probs"], row["old_logps"], row["correct"]
    header, arrays = unpack(write([row]).read_text())
    assert arrays["rewards_0"][:3] == pytest.approx([3.0, -2.0, 0.0], abs=1e-4)
    assert header["own_rewards"] and "logps" not in arrays


def test_two_datasets_without_a_common_sample_are_refused(write):
    first, second = make_row(), make_row(prompt="How few?")
    with pytest.raises(DatasetError, match="no sample in common"):
        write([first], other=Dataset.from_list([second]))


def test_a_bad_row_of_the_second_dataset_is_refused_by_name(write):
    with pytest.raises(DatasetError, match=r"token_probs.*\(In 'second'.\)"):
        write([make_row()], other=Dataset.from_list([make_row(token_probs=[0.5])]), names=("first", "second"))


def test_ids_that_are_too_large_for_any_tokenizer_are_refused_by_row(write):
    row = make_row()
    for name in ("completion_ids", "rewrite_ids"):
        with pytest.raises(DatasetError, match=rf"Row 0, column '{name}': found the id 1099511627776"):
            write([row | {name: [2**40, *row[name][1:]]}])


def test_an_interrupted_write_keeps_the_old_file(write, monkeypatch):
    path = write([make_row()])
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write([make_row(), make_row()])
    assert path.read_bytes() == before and is_report(path)


# --- Page ------------------------------------------------------------------------------------------------------------


def test_the_page_runs_only_its_own_scripts_and_loads_nothing(write):
    page = write([make_row()], title="</title><script>1</script>").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'" and "unsafe" not in policy
    for name, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        digests = [hashlib.sha256(text.encode()).digest() for text in re.findall(pattern, page, re.DOTALL)]
        hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        assert directives[name].split() == hashes
    assert "<title>&lt;/title&gt;&lt;script&gt;1&lt;/script&gt;</title>" in page
    for forbidden in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://", "@import"):
        assert forbidden not in page.replace("http://www.w3.org/2000/svg", ""), forbidden
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,"}


def test_no_text_of_the_data_is_in_the_source_of_the_page(write):
    rows = [make_row(text, text, prompt=text, reference=text) for text in HOSTILE]
    page = write(rows).read_text()
    header, _ = unpack(page)
    assert [prompt for ((_, prompt),) in header["rows"]["prompt"]] == HOSTILE
    assert page.count("<script") == 3 and "'run'" not in page


@needs_chromium
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_browser_shows_hostile_text_and_runs_none_of_it(write, browser, number):
    text = HOSTILE[number]
    names, title = (f"{text}\ud800", "\udfff2"), f"title {text} \ud800"
    row = make_row(text, f"{text} more", prompt=text, reference=text, source=text, edit_outcome=text)
    path = write([row], other=Dataset.from_list([row]), names=names, title=title, charts=[{"title": text}])
    browser.open(path, "token=sample-0")
    assert browser.run("document.title").startswith("title ")
    assert (browser.count("img, a, iframe, object"), browser.count("script")) == (0, 2)
    (requested,) = browser.requests
    assert requested.startswith(path.as_uri()) and not browser.errors
    # What is invisible is spelled, and the text is otherwise unchanged
    spelled, invisible = r"[↵\n\t]|U\+[0-9A-F]{4}", "[\0-\x1f\u200f\u2028\u2029\u202e\ufeff]"
    shown, visible = browser.texts(".field .text"), re.sub(invisible, "", text)
    assert [re.sub(spelled, "", field) for field in shown] == [visible] * 2
    sample, rewrite = (re.sub(spelled, "", tokens) for tokens in browser.texts(".tokens")[:2])
    assert (sample, rewrite) == (f"{visible}{BYTES.eos_token}", f"{visible} more{BYTES.eos_token}")
    assert tip_of(browser)["p"] == "0.9000"


@needs_chromium
def test_search_filters_and_orders_are_in_the_address(write, browser):
    rows = [
        make_row("1 + 2 = 4", "1 + 2 = 3", {3: 0.3}, prompt="Apples", source="easy"),
        make_row("7 + 5 = 12", "7 + 5 = 12", prompt="PEARS", correct=True, source="hard"),
        make_row("3 + 4 = 7", None, {2: 0.01}, prompt="Figs", source="hard"),
        make_row("The answer is 1", "The answer is not 2!", {1: 0.2}, prompt="Apples", correct=True, source="easy"),
    ]
    path = write(rows)
    states = {
        "": [0, 1, 2, 3],
        "q=apples": [0, 3],
        "q=%2B%205": [1],  # text of a sample
        "q=is%20not": [3],  # text of a rewrite
        "sort=lowest_p": [2, 3, 0, 1],
        "sort=edits": [3, 0, 1, 2],
        "correct=yes&sort=lowest_p": [3, 1],
        "flagged=no": [1],
        "verified=no": [2],
        "source=hard&sort=lowest_p": [2, 1],
        "q=nothing%20of%20this": [],
        "sort=nonsense&correct=maybe&row=99": [0, 1, 2, 3],
    }
    for state, expected in states.items():
        browser.open(path, state)
        assert rows_of(browser) == expected, state
        assert browser.text("#count") == (f"{len(expected)} of 4 samples" if len(expected) < 4 else "4 samples")
    assert browser.count("[data-key=source]") == 1
    assert browser.count("[data-key=outcome]") == 0, "there is no such column"


@needs_chromium
def test_the_page_is_used_by_keys(write, browser):
    browser.open(write([make_row(prompt=f"Problem {number}") for number in range(30)]))
    for key in "jjjk":
        browser.press(key)
    assert "row=2" in browser.run("location.hash") and browser.text("#detail h2") == "Sample 2"
    browser.press("/")
    for key in "problem 1":
        browser.press(key)
    wait = "new Promise((done) => { const go = () => {0} ? done() : setTimeout(go, 5); go(); })"
    browser.run(wait.replace("{0}", "document.querySelector('#count').textContent !== '30 samples'"))
    assert rows_of(browser) == [1, *range(10, 20)] and "q=problem+1" in browser.run("location.hash")
    browser.press("Escape")
    for key in "jtc?":
        browser.press(key)
    assert browser.text("#detail h2") == "Sample 10", "after the first that was found"
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    assert "color=reward" in browser.run("location.hash") and browser.run("document.querySelector('#help').open")


@needs_chromium
def test_a_token_is_described_under_the_mouse_and_with_the_focus(write, browser):
    browser.open(write([make_row("日本 = 4")]))
    browser.point_at("[data-token=sample-0]")
    ids = make_row("日本 = 4")["completion_ids"]
    assert browser.texts("#tip dd")[:3] == ["0", str(ids[0]), "<0xE6>"]
    assert browser.count("#tip dl") == 3, "one for each token of the character"
    browser.point_at("#title")
    assert browser.run("document.getElementById('tip').hidden")
    browser.run("document.querySelector('[data-token=sample-0]').focus()")
    browser.press("ArrowRight")
    assert browser.texts("#tip dd")[:2] == ["3", str(ids[3])] and "token=sample-3" in browser.run("location.hash")


@needs_chromium
def test_edits_are_marked_and_have_the_weights_of_the_trainer(write, browser):
    row = make_row("3 + 4 = 8\n9 = 9 ; 7", "3 + 4 = 7\n9 9 ; is 7", {4: 0.1})
    weights = edit_weights(row["completion_ids"], row["rewrite_ids"])
    path = write([row])
    browser.open(path)
    runs = edit_runs(row["completion_ids"], row["rewrite_ids"])
    named = {"insert": "inserted", "delete": "deleted", "replace": "replaced"}
    sample, rewrite = "[data-token^=sample]", "[data-token^=rewrite]"
    for kind, name in named.items():
        assert browser.count(f"{sample}.{name}") == sum(run.source_length for run in runs if run.kind == kind)
        assert browser.count(f"{rewrite}.{name}") == sum(run.target_length for run in runs if run.kind == kind)
    assert browser.count(".tokens .gap") == sum(run.kind == "delete" for run in runs) > 0
    assert browser.run("document.querySelector('.flagged.first').dataset.token") == "sample-4"
    assert browser.count(".tokens .flagged") == 1
    for place, weight in enumerate(weights):
        browser.run(f"document.querySelector('[data-token=rewrite-{place}]').focus()")
        facts = tip_of(browser)
        assert (facts["id"], float(facts["weight"])) == (str(row["rewrite_ids"][place]), weight)
    browser.open(path, "token=sample-4&color=reward")
    facts = tip_of(browser)
    assert (facts["p"], facts["reward"], facts["old log-prob"]) == ("0.1000", "-0.1000", "-0.500")


@needs_chromium
def test_two_reward_models_stand_side_by_side_and_their_disagreement_orders_rows(write, browser):
    rows = [make_row(prompt=f"Problem {number}", low={2: 0.8}) for number in range(4)]
    others = [make_row(prompt=f"Problem {number}", low={2: prob}) for number, prob in ((2, 0.1), (0, 0.5), (3, 0.79))]
    browser.open(write(rows, other=Dataset.from_list(others), names=("old", "new")), "sort=disagreement")
    assert rows_of(browser) == [2, 0, 3, 1], "the last one has not been scored by the second"
    assert browser.texts(".model h2") == ["old", "new"]
    flagged = "document.querySelectorAll('.model:nth-child({}) .tokens .flagged').length"
    assert [browser.run(flagged.format(number)) for number in (1, 2)] == [0, 1]


@needs_chromium
def test_there_is_a_view_of_charts_only_where_there_are_some(write, browser):
    for charts in ([], [{"title": "p by outcome"}]):
        browser.open(write([make_row()], charts=charts))
        assert browser.run("document.getElementById('tabs').hidden") == (not charts)


@needs_chromium
def test_messages_are_shown_with_their_roles(write, browser):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    row = make_row(prompt=prompt)
    for name in ("completion", "rewrite"):
        row[name] = [{"role": "assistant", "content": row[name]}]
    browser.open(write([row]))
    assert browser.texts(".field h3")[:2] == ["Prompt · system", "Prompt · user"]
    assert browser.texts(".field .text")[:2] == ["Be brief.", "How many?"]
    assert browser.text(".snippet") == "How many?"


@needs_chromium
def test_letters_of_a_right_to_left_word_join_over_the_borders_of_tokens(write, browser):
    browser.open(write([make_row("كتاب")]))
    assert browser.count("[data-token^=sample]") == 5, "a letter of two byte tokens is one"
    draw = """(() => {
        const line = document.querySelector('.tokens').cloneNode(false);
        const span = document.createElement('span');
        span.id = 'measured';
        span.append(...PARTS);
        line.append(span);
        line.style.fontFamily = 'sans-serif';
        document.querySelector('.block').append(line);
        const { width } = span.getBoundingClientRect();
        line.remove();
        return width;
    })()"""
    tokens = "[...document.querySelectorAll('[data-token^=sample]')].slice(0, 4).map((token) => token.cloneNode(true))"
    whole, divided, apart = (
        browser.run(draw.replace("PARTS", parts))
        for parts in ("['كتاب']", tokens, "[...'كتاب'].flatMap((letter) => [letter, '\u200c'])")
    )
    if apart == pytest.approx(whole, abs=0.5):
        pytest.skip("needs a font with Arabic letters, which have another width where they do not join")
    assert divided == pytest.approx(whole, abs=0.1)
    assert browser.run("getComputedStyle(document.querySelector('.tokens')).direction") == "rtl"


@needs_chromium
def test_ten_thousand_long_samples_are_drawn_as_they_come_into_view(write, tmp_path, browser):
    # Only the page; `benchmarks/bench_report.py` writes as many rows
    num_rows, num_tokens = 10_000, 300
    rng = np.random.default_rng(0)
    size = num_rows * num_tokens
    numbers, probs = rng.integers(0, 100, size), rng.random(size) * 0.4 + 0.6
    probs[7_654 * num_tokens + 123] = 0.0
    none = np.zeros(0, np.uint32)
    arrays = {"ids": np.arange(100), "usual": np.arange(100) + 1, "tokens": numbers, "places": none, "texts": none}
    arrays |= {"lengths": np.full(num_rows, num_tokens), "num_runs_0": np.zeros(num_rows, np.uint32)}
    arrays |= {f"{name}_0": none for name in ("runs", "inserted", "places", "texts")}
    arrays |= {"is_rewritten_0": np.zeros(num_rows, np.uint32), "probs_0": Quantized(probs, 0.0, 1.0)}
    header, _ = unpack(write([make_row()]).read_text())
    header |= {"texts": ["", *(f" {number}" for number in range(100))], "kinds": ["text"] * 101}
    header["rows"] = {"correct": [True] * num_rows, "prompt": [[["", f"Problem {row}"]] for row in range(num_rows)]}
    path = tmp_path / "report.html"
    data = pack(header, arrays | {"rewards_0": Quantized(probs - 0.5, -0.5, 0.5)})
    path.write_text(make_page(data, "Many"), encoding="utf-8")
    assert path.stat().st_size < 30e6
    browser.open(path, "sort=lowest_p")
    assert browser.text("#count") == "10,000 samples"
    shown = rows_of(browser)
    assert shown[0] == 7_654 and 5 < len(shown) < 60
    assert browser.count(".token") < 2 * num_tokens + 10
    scroll = (
        "(list) => { list.scrollTop = list.scrollHeight; return new Promise((done) => requestAnimationFrame(done)) }"
    )
    browser.run(f"({scroll})(document.querySelector('#list'))")
    assert len(rows_of(browser)) < 60 and rows_of(browser) != shown
    browser.open(path, "q=problem%209999")
    assert rows_of(browser) == [9_999]


@needs_chromium
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 390)])
def test_a_screenshot_is_not_blank_and_nothing_is_wider_than_the_screen(write, browser, dark, width):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, which comes with matplotlib (extra `plots`)")
    low = dict.fromkeys(range(4), 0.0)
    browser.open(write([make_row(low=low) for _ in range(30)]), "row=3", width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    with image.open(io.BytesIO(browser.screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert len(np.unique(pixels, axis=0)) > 50
    red, green, blue = pixels.T
    assert ((red - blue > 50) & (red > green)).sum() > 200, "orange"
    assert ((blue - red > 15) & (blue >= green)).sum() > 200, "blue"
    assert (pixels.mean() < 100) == dark
