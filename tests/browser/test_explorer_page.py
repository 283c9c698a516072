"""The circuit explorer in a real browser, on hand-made circuits whose tokens try to break out of the page."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

HOSTILE = "</script><img src=x onerror=alert(1)>"
N = 6  # input features of each circuit
TERMS = ("feature_feature", "feature_bias", "feature_error", "bias_bias", "bias_error", "error_error")
ZERO_TERMS = ("feature_linear", "bias_linear", "error_linear")


def circuit(name, labels):
    """A circuit whose weight between members a and b is (a + 1)(b + 1) / 100, negative where a + b is odd."""
    weights = [[(a + 1) * (b + 1) / 100 * (-1) ** (a + b) for b in range(N)] for a in range(N)]
    together = [[1 / (1 + abs(a - b)) for b in range(N)] for a in range(N)]
    members = [
        {"feature": 10 * a, "label": labels[a], "group": (0, 0, 1, 1, -1, -1)[a], "side": a % 2, "cluster": a // 2,
         "usage": 1 + a, "projection": [a - 2.5, (a - 2) ** 2 / 4]}
        for a in range(N)
    ]  # fmt: skip
    layer, feature = map(int, name.split("/"))
    return {
        "name": name, "label": HOSTILE, "layer": layer, "feature": feature, "members": members, "weights": weights,
        "everywhere": together, "active": together, "cloud": [[0.1, 0.2, 7], [1.5, -0.3, 8]],
        "orders": {"cluster": [*range(N)], "group": [*range(N)], "usage": [*range(N)][::-1], "name": [2, 0, 1, 5, 4, 3],
                   "v1": [*range(N)][::-1], "v2": [*range(N)]},
        "proof": None,
        "summary": {"frequency": 0.01, "rank2_correlation": 0.8, "completeness": 0.9, "and_shape": 0.7, "outliers": 3,
                    "effective_rank": 9.0, "eigenvalues": [0.5, -0.4, 0.1], "semicircle_edge": 0.2,
                    "top_tokens": ["not", HOSTILE], "promoted": [["bad", 1.0]], "suppressed": [["good", -1.0]],
                    "pairs_shown": 1.0, "pairs_mean": 1.1},
    }  # fmt: skip


def account(n_tokens, scale):
    """A feature whose account at token t adds up to scale * t."""
    positions = []
    for t in range(n_tokens):
        pairs = [[0, 10, 0.5, 0.6 * scale * t], [20, 20, 0.1, -0.1 * scale * t], [30, 999, 0.2, 0.1 * scale * t]]
        terms = dict.fromkeys((*TERMS, *ZERO_TERMS), 0.0)
        terms |= {"feature_feature": 0.7 * scale * t, "feature_error": 0.4 * scale * t, "constant": -0.1 * scale * t}
        positions.append({"terms": terms, "pairs": pairs, "n_pairs": 8, "rest": 0.1 * scale * t})
    entry = {
        "before": [["good", 0.5], ["bad", 0.2]],
        "after": [["good", 0.3], [HOSTILE, 0.25]],
        "changed": [["good", 0.5, 0.3], ["bad", 0.2, 0.24]],
        "kl": 0.0123,
    }
    values = [scale * t for t in range(n_tokens)]
    edit = {"description": "rank-2 form removed from the weights", "next": [entry] * n_tokens}
    return {"activation": values, "pre_activation": values, "positions": positions, "edit": edit}


def prompt(text, scale, source="written for this page", tokens=None):
    tokens = tokens or text.split(" ")
    return {
        "source": source, "text": text, "tokens": tokens,
        "features": {"4/143": account(len(tokens), scale), "4/18": account(len(tokens), 0)},
        "labels": {"4": {"999": "outside · " + HOSTILE}},
    }  # fmt: skip


def document():
    labels = ["not · n't", HOSTILE, "and · was", "ε · " + HOSTILE, "\u202ereversed", "(not active)"]
    prompts = [
        prompt("the car was good", 0.1),
        prompt("it was not good", 1.0),
        prompt(HOSTILE, 0.5, HOSTILE, ["a", HOSTILE]),
    ]
    return {
        "schema_version": 1, "kind": "circuit explorer", "terms": {"feature_error": "what the dictionary misses"},
        "provenance": {"model": {"name": HOSTILE}}, "prompts": prompts,
        "circuits": [circuit("4/143", labels), circuit("4/18", labels[::-1])],
    }  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from bilinear_circuits.report.explorer import explorer_page

    file = tmp_path_factory.mktemp("explorer") / "explorer.html"
    file.write_text(explorer_page(document()), encoding="utf-8")
    return file.as_uri()


def opened(page, address):
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    return page


def number(text):
    return float(text.replace("−", "-").replace("+", ""))


def values(page, table):
    """Numbers of a table of the ledger, row by row, the sum last."""
    return [number(text) for text in page.locator(f"#ledger > table:nth-of-type({table}) td.n").all_inner_texts()]


def readout(page):
    names = page.locator("#readout dt").all_inner_texts()
    return dict(zip(names, page.locator("#readout dd").all_inner_texts(), strict=True))


def cell(page, a, b):
    return page.locator(f"#view-matrix [data-row='{a}'][data-column='{b}']")


@pytest.mark.slow
def test_circuits_are_chosen_with_the_keyboard_and_stand_in_the_address(browser_page, address):
    page = opened(browser_page, address)
    assert "circuit=4/143" in page.url
    first, second = page.locator("#circuits button").all()
    first.focus()
    page.keyboard.press("ArrowRight")
    assert second.get_attribute("aria-selected") == "true"
    assert page.evaluate("document.activeElement.textContent").strip().startswith("4/18")
    assert "circuit=4/18" in page.url
    page.goto(page.url.replace("circuit=4/18", "circuit=4/143").replace("view=matrix", "view=network"))
    page.wait_for_selector("#view-network svg")
    assert first.get_attribute("aria-selected") == "true"
    page.goto("about:blank")
    opened(page, address + "#circuit=9/9&view=nonsense&prompt=77&order=__proto__&token=x")
    assert "circuit=4/143" in page.url
    assert page.locator("#view-matrix svg").count() == 1


@pytest.mark.slow
def test_matrix_is_read_reordered_and_thresholded(browser_page, address, screenshot):
    page = opened(browser_page, address)
    assert page.locator("#view-matrix .pair[data-row]").count() == N * N
    assert page.locator("#view-matrix .cluster").count() == 3
    cell(page, 1, 4).hover()
    read = readout(page)
    assert number(read["T_ab"]) == pytest.approx(-0.10)
    assert number(read["coefficient of z_a z_b (2 T_ab)"]) == pytest.approx(-0.20)
    assert number(read["adds on average, where active"]) == pytest.approx(-0.20 / 4)
    assert "10 " + HOSTILE in page.inner_text("#readout")
    cell(page, 2, 2).hover()
    assert number(readout(page)["coefficient of z_a²"]) == pytest.approx(0.09)
    place = cell(page, 0, 0).get_attribute("y")
    page.select_option("#order", "usage")
    assert float(cell(page, 0, 0).get_attribute("y")) > float(place)
    assert page.locator("#view-matrix .cluster").count() == 0
    page.locator("#threshold").fill("80")  # a share of 0.64 of the largest, 0.36
    assert page.locator("#view-matrix .pair[data-row]:not(.weak)").count() == 6  # 55, 44, and 45 and 35 in both orders
    assert page.inner_text("#threshold-text") == "at least 0.23: 4 of 21 pairs"
    page.locator("#view-matrix svg").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert "T_ab" in readout(page)
    screenshot("explorer-hostile-matrix", full=True)


@pytest.mark.slow
def test_cells_show_weights_or_weights_times_co_activation(browser_page, address):
    page = opened(browser_page, address)
    page.locator("summary", has_text="in tables").click()
    strongest = page.locator("#strongest tr")
    assert strongest.count() == N * (N + 1) // 2
    assert number(strongest.first.locator("td.n").inner_text()) == pytest.approx(0.36)
    assert number(strongest.nth(1).locator("td.n").inner_text()) == pytest.approx(-0.30)
    page.select_option("#values", "active")
    assert number(strongest.nth(1).locator("td.n").inner_text()) == pytest.approx(0.25)  # T_44, with itself always
    assert "values=active" in page.url


@pytest.mark.slow
def test_network_shows_the_links_above_the_threshold(browser_page, address, screenshot):
    page = opened(browser_page, address + "#view=network")
    links, nodes = page.locator("#view-network .link"), page.locator("#view-network .node")
    assert (links.count(), nodes.count()) == (21, N)
    page.locator("#threshold").fill("80")
    assert links.count() == 4
    assert page.locator("#view-network .link.positive").count() == 3
    nodes.nth(5).focus()
    assert page.locator("#view-network .link.lit").count() == 3
    assert "cluster C" in page.inner_text("#readout")
    screenshot("explorer-hostile-network")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save SVG").click()
    text = download.value.path().read_text()
    assert download.value.suggested_filename == "network-4-143.svg"
    assert text.startswith("<svg")
    assert "<img" not in text
    assert "rgb(" in text  # colours are written out: the file needs no style sheet
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()
    assert download.value.path().read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_plane_names_the_groups(browser_page, address, screenshot):
    page = opened(browser_page, address + "#view=plane")
    assert page.locator("#view-plane .member").count() == N
    assert page.locator("#view-plane .cloud").count() == 2
    assert page.locator("#view-plane .name").count() == 4
    assert "eigenvalue −0.4000 (takes away)" in page.locator("#view-plane").text_content()
    page.locator("#view-plane .member").nth(3).focus()
    assert "v1 +0.500" in page.get_by_role("tooltip").inner_text()
    page.select_option("#zoom", "members")
    assert "zoom=members" in page.url
    screenshot("explorer-hostile-plane")


def test_a_token_opens_its_ledger_and_the_numbers_add_up(browser_page, address):
    page = opened(browser_page, address)
    assert page.locator("#prompt option:checked").inner_text().startswith("3.00")  # the prompt it is strongest in
    tokens = page.locator("#tokens button")
    assert tokens.all_inner_texts() == ["it", "was", "not", "good"]
    assert tokens.nth(3).get_attribute("aria-pressed") == "true"
    tokens.nth(2).hover()
    assert page.get_by_role("tooltip").inner_text() == "activation 2\npre-activation +2.000"
    tokens.nth(2).focus()
    page.keyboard.press("Enter")
    assert "token=2" in page.url
    assert page.evaluate("document.activeElement.textContent") == "not"  # the focus stays
    terms = values(page, 1)
    assert terms[:-1] == pytest.approx([1.4, 0.8, -0.2])
    assert sum(terms[:-1]) == pytest.approx(terms[-1]) == pytest.approx(2.0)
    assert "7 terms are 0" in page.inner_text("#ledger")
    pairs = values(page, 2)
    assert pairs[:-1] == pytest.approx([1.2, -0.2, 0.2, 0.2])
    assert sum(pairs[:-1]) == pytest.approx(pairs[-1]) == pytest.approx(terms[0])
    assert "5 other pairs" in page.inner_text("#ledger")
    assert "KL 0.0123 nats" in page.inner_text("#ledger")
    rows = [" ".join(text.split()) for text in page.locator(".next tbody tr").all_inner_texts()]
    assert rows[0].startswith("good")
    assert "50 % → 30 %" in rows[0]
    assert "−20.0" in rows[0]
    assert "– → 25 %" in rows[1]
    page.locator("#circuits button").nth(1).click()  # silent in every prompt
    assert "activation 0" in page.inner_text("#ledger")
    assert page.locator("#tokens .on").count() == 0


@pytest.mark.slow
def test_a_pair_of_the_ledger_is_shown_in_the_matrix_and_the_network(browser_page, address):
    page = opened(browser_page, address)
    page.locator("#ledger .duo").nth(0).hover()
    frame = page.locator("#view-matrix .frame")
    assert frame.get_attribute("visibility") == "visible"
    assert float(frame.get_attribute("x")) + 0.5 == float(cell(page, 0, 1).get_attribute("x"))
    assert number(readout(page)["adds at this token"]) == pytest.approx(1.8)
    page.locator("#ledger .duo").nth(2).focus()
    assert frame.get_attribute("visibility") == "hidden"
    assert "not both among its 6 input features" in page.inner_text("#readout")
    assert "outside" in page.inner_text("#readout")
    page.get_by_role("tab", name="Network").click()
    page.locator("#ledger .duo").nth(0).hover()
    assert page.locator("#view-network .link.lit").count() == 1
    assert page.locator("#view-network .node.lit").count() == 2


@pytest.mark.slow
def test_a_text_that_a_file_cannot_compute_is_explained(browser_page, address):
    page = opened(browser_page, address)
    page.fill("#prompt-text", "  The car   was GOOD ")
    page.keyboard.press("Enter")
    assert page.inner_text("#prompt-status") == ""
    assert page.locator("#tokens button").all_inner_texts() == ["the", "car", "was", "good"]
    page.fill("#prompt-text", "something new")
    page.get_by_role("button", name="Show").click()
    assert "bilinear-circuits serve" in page.inner_text("#prompt-status")
    assert page.locator("#tokens button").all_inner_texts() == ["the", "car", "was", "good"]


def test_hostile_tokens_stay_text_in_every_view(browser_page, address):
    page = opened(browser_page, address)
    for view in ("Matrix", "Network", "Eigenvectors"):
        page.get_by_role("tab", name=view).click()
        assert page.locator("main img, main script").count() == 0
    page.select_option("#prompt", "2")
    assert HOSTILE in page.locator("#tokens button").all_inner_texts()
    page.locator("#tokens button").nth(1).click()
    assert HOSTILE in page.inner_text("#ledger")
    assert "⟨U+202E⟩reversed" in page.locator("#members").text_content()
    assert page.locator("main img, main script").count() == 0


def test_theme_changes_every_drawing(browser_page, address, screenshot):
    page = opened(browser_page, address)
    fill = "() => getComputedStyle(document.querySelector('#view-matrix .pair')).fill"
    light = page.evaluate(fill)
    page.get_by_role("button", name="Switch to the dark theme").click()
    assert page.evaluate(fill) != light
    assert page.locator("#view-matrix svg").count() == 1
    screenshot("explorer-hostile-dark")


@pytest.mark.slow
def test_phone_scrolls_in_one_direction_only(browser_page, address, screenshot):
    browser_page.set_viewport_size({"width": 390, "height": 844})
    page = opened(browser_page, address)
    for view in ("Matrix", "Network", "Eigenvectors"):
        page.get_by_role("tab", name=view).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    screenshot("explorer-hostile-phone", full=True)


class TestServed:
    """The page as `bilinear-circuits serve` shows it, in front of a server that answers as told."""

    @pytest.fixture
    def server(self, allowed):
        from bilinear_circuits.report.explorer import explorer_page

        replies, asked = [], []
        page = explorer_page(document(), live=True).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, "text/html", page)

            def do_POST(self):
                asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                status, body = replies.pop(0)
                self.reply(status, "application/json", body if isinstance(body, bytes) else json.dumps(body).encode())

            def reply(self, status, kind, body):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        allowed.append(url)
        yield url, replies, asked
        server.shutdown()
        server.server_close()

    def test_a_typed_text_is_answered(self, server, browser_page):
        url, replies, asked = server
        answer = prompt("a new text", 0.5)
        del answer["source"]
        replies.append((200, answer))
        page = opened(browser_page, url)
        page.fill("#prompt-text", "a new text")
        page.get_by_role("button", name="Show").click()
        page.wait_for_selector("#tokens button:has-text('new')")
        assert asked == [("/api/prompt", {"text": "a new text", "features": ["4/143", "4/18"]})]
        assert page.locator("#prompt option:checked").inner_text().endswith("a new text")
        assert values(page, 1)[-1] == pytest.approx(1.0)
        assert page.inner_text("#prompt-status") == ""

    def test_refusals_are_shown_in_plain_words(self, server, chromium):
        # A page of its own: Chromium logs every status of 400 and more as an error, which is what is tested here.
        url, replies, _ = server
        page = chromium.new_page()
        opened(page, url)
        for status, body, said in (
            (503, {"error": "busy"}, "The model is busy with another prompt. Try again in a moment."),
            (413, {"error": "at most 96 tokens, got 200"}, "Not computed: at most 96 tokens, got 200"),
            (400, {"error": HOSTILE}, f"Not computed: {HOSTILE}"),
            (200, b"no json", "The server sent an answer that this page cannot read."),
        ):
            replies.append((status, body))
            page.fill("#prompt-text", "a new text")
            page.get_by_role("button", name="Show").click()
            page.wait_for_function("(said) => document.getElementById('prompt-status').textContent === said", arg=said)
            assert page.locator("#prompt-send").is_enabled()
            assert page.locator("main img").count() == 0
        page.close()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The explorer of two circuits of the shipped model."""
    from bilinear_circuits.cli import main

    out = tmp_path_factory.mktemp("shipped")
    assert main(["explore", "--features", "4/143", "4/1846", "--n-stories", "100", "--out", str(out)]) == 0
    return out / "explorer.html"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_circuits_of_the_shipped_model(theme, width, shipped, browser_page, screenshot):
    assert shipped.stat().st_size < 2_000_000
    browser_page.emulate_media(color_scheme=theme)
    browser_page.set_viewport_size({"width": width, "height": 900})
    page = opened(browser_page, shipped.as_uri())
    assert page.locator("#view-matrix .pair[data-row]").count() == 40 * 40
    for view in ("Matrix", "Network", "Eigenvectors"):
        page.get_by_role("tab", name=view).click()
        screenshot(f"explorer-{view.lower()}-{theme}-{width}", full=True)
    for prompt_index in range(3):
        page.select_option("#prompt", str(prompt_index))
        for token in page.locator("#tokens button").all():
            token.click()
            for table in (1, 2):
                *parts, total = values(page, table)
                assert sum(parts) == pytest.approx(total, abs=0.01)


@pytest.mark.parametrize("size", [(1300, 900), (1100, 700)])
def test_the_matrix_stays_in_sight_while_the_prompt_scrolls(browser_page, address, size):
    browser_page.set_viewport_size({"width": size[0], "height": size[1]})
    page = opened(browser_page, address)
    page.add_style_tag(content=".prompts { min-height: 3000px; }")
    page.evaluate("document.querySelector('.prompts').scrollIntoView()")
    page.evaluate("scrollBy(0, 1200)")
    for part in ("#view-matrix svg", "#readout"):
        box = page.evaluate("(part) => document.querySelector(part).getBoundingClientRect().toJSON()", part)
        assert box["top"] >= 0
        assert box["bottom"] <= size[1]
    cell(page, 1, 4).hover()
    assert readout(page)


def test_a_phone_shows_the_matrix_in_full_and_scrolls_past_it(browser_page, address):
    browser_page.set_viewport_size({"width": 390, "height": 844})
    page = opened(browser_page, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    style = (
        "(part) => [getComputedStyle(document.querySelector(part)).position, document.querySelector(part).scrollTop]"
    )
    assert page.evaluate(style, ".views")[0] == page.evaluate(style, "#readout")[0] == "static"
    views = page.locator(".views")
    assert views.evaluate("one => one.scrollHeight <= one.clientHeight")
    page.evaluate("document.querySelector('.prompts').scrollIntoView()")
    assert views.evaluate("one => one.getBoundingClientRect().bottom") <= 1
