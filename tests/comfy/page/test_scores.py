"""Scores on the nodes, in both of the page's node renderers: what is shown is true, and nothing of it is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PANEL = ".rali-scores:visible"
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
NODE = "app.graph._nodes.find(node => node.type === '{}')"
SAVED = "() => JSON.stringify(app.graph.serialize())"
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"


THUMBNAIL_SIZE = """() => new Promise(done => { const strip = new Image();
    strip.onload = () => done([strip.naturalWidth, strip.naturalHeight]); strip.onerror = () => done(null);
    const { backgroundImage } = document.querySelector(".rali-thumbnail").style;
    strip.src = backgroundImage.match(/"(.*)"/)[1]; })"""


def scored_graph(page: Any, images: dict[str, str], kind: str = "RALI_Score") -> None:
    one = page.add("LoadImage", 60, 80, image=images["bad"])
    two = page.add("LoadImage", 60, 480, image=images["good"])
    batch = page.add("ImageBatch", 420, 80)
    score = page.add(kind, 720, 80)
    page.wire(one, 0, batch, "image1")
    page.wire(two, 0, batch, "image2")
    page.wire(batch, 0, score, "images")


def set_widget(page: Any, kind: str, name: str, value: Any) -> None:
    """Change a widget's value, and let the page notice as it does after a click."""
    page.page.evaluate(
        f"([name, value]) => {{ {NODE.format(kind)}.widgets.find(each => each.name === name).value = value;"
        f" {TRACKER}.captureCanvasState(); }}",
        [name, value],
    )


@RENDERERS
def test_scores_are_on_the_node_best_first_and_in_nothing_that_is_saved(
    open_page: Callable[..., Any], images: dict[str, str], vue: bool
) -> None:
    name = "vue" if vue else "canvas"
    page = open_page(vue=vue)
    scored_graph(page, images)
    page.page.locator(PANEL, has_text="No scores yet. Run the workflow.").wait_for()
    page.rest()
    page.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
    before = page.page.evaluate(SAVED), page.page.evaluate(f"() => {TRACKER}.undoQueue.length")
    page.run()
    page.state("current")
    best, worst = page.numbers(2)
    page.shot(f"score-{name}")
    assert best > worst
    assert page.seen("data-rali-index", 2) == ["1", "0"]
    assert page.page.locator(f"{PANEL} .rali-thumbnail:visible").count() == 2
    assert page.page.evaluate(THUMBNAIL_SIZE) == [2 * 48, 48]
    panel = page.page.locator(PANEL).first
    how, mean, _, _ = panel.locator(".rali-headline").inner_text().split(maxsplit=3)  # "mean 0.485 · fair"
    assert (how, float(mean)) == ("mean", pytest.approx((best + worst) / 2, abs=0.002))
    assert panel.locator(".rali-compared").inner_text().startswith("better than ")
    assert " % of " in panel.locator(".rali-compared").inner_text()
    page.run()
    page.state("current")
    assert page.numbers(2) == [best, worst]
    page.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
    assert (page.page.evaluate(SAVED), page.page.evaluate(f"() => {TRACKER}.undoQueue.length")) == before
    assert not {"rali_scores", f"{best:.3f}"} & set(json.dumps(before[0]).split('"'))
    node = next(node for node in json.loads(before[0])["nodes"] if node["type"] == "RALI_Score")
    assert len(node["widgets_values"]) == 3  # aggregation, threshold, coverage; the panel is not a value


@RENDERERS
def test_no_verdict_looks_current_after_a_change_a_failure_or_while_bypassed(
    open_page: Callable[..., Any], images: dict[str, str], vue: bool
) -> None:
    page = open_page(vue=vue)
    image, score = page.add("LoadImage", 60, 80, image=images["good"]), page.add("RALI_Score", 420, 80)
    page.wire(image, 0, score, "images")
    page.run()
    page.state("current")
    assert page.seen("data-rali-passed", 1) == ["true"]
    headline = page.page.locator(f"{PANEL} .rali-headline").first.inner_text()
    assert re.fullmatch(r"0\.\d{3} · (fair|good|excellent)", headline)  # no "mean" of one image
    meaning = page.page.locator(f"{PANEL} .rali-compared").first.inner_text()
    assert re.fullmatch(r"better than \d+ % of photographs, \d+ % of generated images", meaning)
    set_widget(page, "LoadImage", "image", images["bad"])
    page.state("changed")
    page.shot(f"changed-{'vue' if vue else 'canvas'}")
    set_widget(page, "LoadImage", "image", images["good"])
    page.state("current")
    set_widget(page, "RALI_Score", "threshold", 0.99)
    page.state("changed")
    page.page.evaluate(f"() => {{ {NODE.format('RALI_Score')}.mode = 4; {TRACKER}.captureCanvasState(); }}")
    page.state("bypassed")
    assert page.numbers(0) == []
    page.page.evaluate(f"() => {{ {NODE.format('RALI_Score')}.mode = 0; {TRACKER}.captureCanvasState(); }}")
    odd = page.add("Test_Odd", 60, 600, kind="all nan")
    page.wire(odd, 0, score, "images")
    page.run("execution_error")
    page.state("failed")
    page.shot(f"failed-{'vue' if vue else 'canvas'}")
    page.wire(image, 0, score, "images")
    page.run()
    page.state("current")
    assert page.seen("data-rali-passed", 1) == ["false"]


def begin(page: Any, count: int) -> None:
    """Press Run, and wait until RALI Score is at its images."""
    page.page.get_by_test_id("queue-button").click()
    page.page.locator(f"{PANEL} .rali-state", has_text=re.compile(rf"^\d+ of {count}…$")).first.wait_for()


@RENDERERS
def test_a_stopped_run_leaves_no_verdict_and_says_so(open_page: Callable[..., Any], vue: bool) -> None:
    page = open_page(vue=vue)
    noise, score = page.add("Test_Odd", 60, 80, kind="noise", count=2, seed=200 + vue), page.add("RALI_Score", 420, 80)
    page.wire(noise, 0, score, "images")
    page.run()
    page.state("current")
    set_widget(page, "Test_Odd", "count", 400)
    begin(page, 400)
    page.do("Comfy.Interrupt")
    page.state("stopped")
    page.page.locator(PANEL, has_text="Not current: the last run was stopped before this node was done.").wait_for()
    page.shot(f"stopped-{'vue' if vue else 'canvas'}")


@RENDERERS
def test_a_result_comes_to_its_tab_while_another_one_is_open(open_page: Callable[..., Any], vue: bool) -> None:
    page = open_page(vue=vue)
    noise, score = page.add("Test_Odd", 60, 80, kind="noise", count=60, seed=300 + vue), page.add("RALI_Score", 420, 80)
    page.wire(noise, 0, score, "images")
    page.page.evaluate(
        "() => app.api.addEventListener('execution_success', () => { window.raliNodes = app.graph._nodes.length; })"
    )
    begin(page, 60)
    page.clear()
    other = page.add("RALI_Score", 420, 80)
    assert other
    page.wait("window.raliNodes !== undefined")
    assert page.page.evaluate("() => window.raliNodes") == 1  # it ended while the other tab was open
    page.state("none")
    page.do("Workspace.PreviousOpenedWorkflow")
    page.wait("app.graph._nodes.length === 2")
    page.state("current")
    assert len(page.numbers(16)) == 16


LATE_REPLY = """() => { const { fetchApi } = app.api; app.api.fetchApi = async function (route) {
    if (route !== "/prompt") return fetchApi.apply(this, arguments);
    const ended = new Promise(done => app.api.addEventListener("execution_success", () => setTimeout(done, 500)));
    const reply = await fetchApi.apply(this, arguments);
    await ended;
    return reply; }; }"""


def test_a_result_is_current_when_the_reply_to_its_prompt_comes_after_its_run(
    open_page: Callable[..., Any], images: dict[str, str]
) -> None:
    page = open_page()
    image, score = page.add("LoadImage", 60, 80, image=images["good"]), page.add("RALI_Score", 420, 80)
    page.wire(image, 0, score, "images")
    page.page.evaluate(LATE_REPLY)
    page.run()
    page.state("current")
    assert page.seen("data-rali-passed", 1) == ["true"]


@RENDERERS
def test_results_come_back_with_their_tab_and_after_a_reload_and_copies_and_old_files_hold_none(
    open_page: Callable[..., Any], images: dict[str, str], vue: bool
) -> None:
    page = open_page(vue=vue)
    image, score = page.add("LoadImage", 60, 80, image=images["good"]), page.add("RALI_Score", 420, 80)
    page.wire(image, 0, score, "images")
    page.run()
    shown = page.numbers(1)
    saved = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    page.page.evaluate(
        "(id) => { app.canvas.copyToClipboard([app.graph.getNodeById(id)]); app.canvas.pasteFromClipboard(); }", score
    )
    page.wait("app.graph._nodes.length === 3")
    page.page.locator(f"{PANEL}[data-rali-state=none]").wait_for()
    assert page.numbers(1) == shown  # the copy has none
    page.do("Comfy.Undo")
    page.wait("app.graph._nodes.length === 2")
    page.state("current")
    page.clear()
    assert page.numbers(0) == []
    page.do("Workspace.PreviousOpenedWorkflow")
    page.wait("app.graph._nodes.length === 2")
    page.state("current")
    assert page.numbers(1) == shown

    page.reload()
    page.load(saved)  # the server's history has a run of exactly this graph
    page.state("current")
    assert page.numbers(1) == shown
    old = next(node for node in saved["nodes"] if node["type"] == "RALI_Score")
    old["properties"]["rali_scores"] = {"scores": [0.987], "threshold": 0.3, "chosen": None, "note": "mean 0.987"}
    old["widgets_values"][1] = 0.3
    page.load(saved)
    page.state("none")
    assert "0.987" not in page.page.content()
    assert "rali_scores" not in page.page.evaluate(SAVED)


CONTRAST = """() => { const parts = (text) => { const found = text.match(/[0-9.]+/g).map(Number);
        return text.startsWith("color(srgb") ? found.slice(0, 3) : found.slice(0, 3).map(x => x / 255); };
    const light = (text) => { const [r, g, b] = parts(text).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const box = document.querySelector(".rali-scores"), ground = light(getComputedStyle(box).backgroundColor);
    return Math.min(...[...box.querySelectorAll("div, span")].filter(x => x.textContent && !x.children.length).map(x => {
        const own = light(getComputedStyle(x).color);
        return (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05); })); }"""


@RENDERERS
def test_the_score_is_seen_when_collapsed_from_outside_a_subgraph_and_on_the_light_theme(
    open_page: Callable[..., Any], images: dict[str, str], vue: bool
) -> None:
    name = "vue" if vue else "canvas"
    page = open_page(vue=vue)
    image, score = page.add("LoadImage", 60, 80, image=images["good"]), page.add("RALI_Score", 420, 80)
    page.wire(image, 0, score, "images")
    page.run()
    (number,) = page.numbers(1)
    for theme in ("light", "dark"):
        page.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", theme)
        page.settle()
        page.shot(f"theme-{theme}-{name}")
        assert page.page.evaluate(CONTRAST) >= 4.5
    page.page.evaluate(f"(id) => {{ app.graph.getNodeById(id).collapse(); {TRACKER}.captureCanvasState(); }}", score)
    title = f"{number:.3f} · RALI Score"
    page.wait(f"app.graph.getNodeById({score}).getTitle() === '{title}'")
    if vue:
        page.page.get_by_text(title).wait_for()
    page.shot(f"collapsed-{name}")
    assert f"{number:.3f}" not in page.page.evaluate(SAVED)
    assert page.page.evaluate("async () => JSON.stringify(await app.graphToPrompt())").find(f"{number:.3f}") == -1
    convert = "app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))"
    page.page.evaluate(f"(id) => {{ {convert}; {TRACKER}.captureCanvasState(); }}", score)
    page.settle()  # a run before the page has taken this in is one of another graph
    page.run()
    page.wait(f"app.graph._nodes.some(node => node.subgraph && node.getTitle().startsWith('{number:.3f} · '))")
    if vue:
        page.page.get_by_text(f"{number:.3f} · ").first.wait_for()
    page.shot(f"subgraph-{name}")


WATCH = """() => { window.raliSaid = new Set(); const look = () => document.querySelectorAll(".rali-state").forEach(
        each => window.raliSaid.add(each.textContent));
    const seen = () => { if (document.querySelector(".rali-state .rali-thumbnail")) window.raliSaid.add("thumbnail"); };
    new MutationObserver(() => { look(); seen(); }).observe(document.body, { childList: true, subtree: true }); }"""


@RENDERERS
def test_a_running_node_says_what_it_does_and_lists_the_best_of_many(open_page: Callable[..., Any], vue: bool) -> None:
    page = open_page(vue=vue)
    # Noise of its own: what the other renderer's test has scored is known.
    noise = page.add("Test_Odd", 60, 80, kind="noise", count=24, seed=100 + vue)
    score = page.add("RALI_Score", 420, 80)
    page.wire(noise, 0, score, "images")
    page.page.evaluate(WATCH)
    page.run()
    page.state("current")
    said = page.page.evaluate("() => [...window.raliSaid]")
    assert any(re.fullmatch(r"\d+ of 24…", text) for text in said), said
    shown = page.numbers(16)
    assert shown == sorted(shown, reverse=True)
    page.shot(f"many-{'vue' if vue else 'canvas'}")
    rest = page.page.locator(f"{PANEL} .rali-rest").first.inner_text()
    assert re.fullmatch(r"16 of 24 shown · worst 0\.\d{3} \(image \d+\)", rest)


@RENDERERS
def test_a_searching_sampler_shows_its_tally_and_lists_the_winner_first(
    open_page: Callable[..., Any], vue: bool
) -> None:
    page = open_page(vue=vue)
    tiny, latent = page.add("Test_TinyDiffusion", 60, 80), page.add("EmptyLatentImage", 60, 300, width=64, height=64)
    sampler = page.add("RALI_BestOfNSampler", 420, 80, seed=50 + 10 * vue, steps=2, n=4)
    preview = page.add("PreviewImage", 900, 80)
    for output, name in ((0, "model"), (1, "positive"), (1, "negative"), (2, "vae")):
        page.wire(tiny, output, sampler, name)
    page.wire(latent, 0, sampler, "latent_image")
    page.wire(sampler, 0, preview, "images")
    page.page.evaluate(WATCH)
    page.run()
    page.state("current")
    said = page.page.evaluate("() => [...window.raliSaid]")
    tally = rf"[1-4] of 4 tried; best so far 0\.\d{{3}}, seed {5 + vue}\d"
    assert any(re.fullmatch(tally, text) for text in said), said
    assert "thumbnail" in said
    scores = page.numbers(4)
    assert scores == sorted(scores, reverse=True)
    assert page.page.locator(f"{PANEL} .rali-row").first.inner_text().startswith("★")
    page.shot(f"search-done-{'vue' if vue else 'canvas'}")


def forget_results(server: Any) -> None:
    """ComfyUI reports what an earlier run of the same node left in its cache, used or not."""
    assert server.post("/api/free", {"free_memory": True})[0] == 200


@RENDERERS
@pytest.mark.parametrize("kind", ["RALI_BestOfN", "RALI_Filter", "RALI_Gate"])
def test_a_node_that_nothing_uses_says_so_before_and_after_a_run(
    open_page: Callable[..., Any], server: Any, images: dict[str, str], kind: str, vue: bool
) -> None:
    forget_results(server)
    page = open_page(vue=vue)
    image, node, preview = page.add("LoadImage", 60, 80, image=images["good"]), page.add(kind, 420, 80), None
    page.wire(image, 0, node, "images")
    if kind == "RALI_Gate":
        page.wire(image, 0, node, "value")
    preview = page.add("PreviewImage", 900, 400)  # ComfyUI refuses a workflow without any output
    page.wire(image, 0, preview, "images")
    unused = page.page.locator(PANEL, has_text="Nothing uses this node's outputs. Connect one, then run.")
    unused.wait_for()
    page.run()
    unused.wait_for()
    assert page.numbers(0) == []
    page.shot(f"unused-{kind}-{'vue' if vue else 'canvas'}")
    page.wire(node, 0, preview, "images")
    page.run()
    page.state("current")
    assert unused.count() == 0
    said = {"RALI_BestOfN": "kept 1 of 1", "RALI_Filter": "1 of 1 passed", "RALI_Gate": "open: 0."}[kind]
    page.page.locator(f"{PANEL} .rali-note", has_text=said).wait_for()
    page.shot(f"used-{kind}-{'vue' if vue else 'canvas'}")


@RENDERERS
def test_a_combination_that_nothing_uses_says_so_before_and_after_a_run(
    open_page: Callable[..., Any], server: Any, vue: bool
) -> None:
    forget_results(server)
    page = open_page(vue=vue)
    numbers, combine = page.add("Test_Numbers", 60, 80, text="0.4,0.2"), page.add("RALI_CombineScores", 420, 80)
    other, shown = page.add("PreviewAny", 900, 80), page.add("PreviewAny", 900, 300)
    page.wire(numbers, 1, combine, "scores_a")
    page.wire(numbers, 1, other, "source")
    unused = page.page.locator(PANEL, has_text="Nothing uses this node's outputs. Connect one, then run.")
    unused.wait_for()
    page.run()
    unused.wait_for()
    page.wire(combine, 0, shown, "source")
    page.run()
    page.state("current")
    assert unused.count() == 0
    assert page.numbers(2) == [0.4, 0.2]


@RENDERERS
def test_bars_are_drawn_on_the_scale_of_the_scorer_and_fuller_is_better(
    open_page: Callable[..., Any], vue: bool
) -> None:
    page = open_page(vue=vue)
    noise, numbers = (
        page.add("Test_Odd", 60, 80, kind="noise", count=3),
        page.add("Test_Numbers", 60, 400, text="40,20,90"),
    )
    best = page.add("RALI_BestOfN", 420, 80, scores_direction="lower is better", scores_high=100.0, k=1)
    preview = page.add("PreviewImage", 900, 80)
    page.wire(noise, 0, best, "images")
    page.wire(numbers, 1, best, "scores")
    page.wire(best, 0, preview, "images")
    page.run()
    page.state("current")
    assert page.seen("data-rali-index", 3) == ["1", "0", "2"]
    bars = page.page.locator(f"{PANEL} .rali-bar:visible")
    shares = [float(bars.nth(place).evaluate("bar => parseFloat(bar.style.width)")) for place in range(3)]
    assert shares == pytest.approx([80, 60, 10])
    page.shot(f"bars-{'vue' if vue else 'canvas'}")


@pytest.mark.parametrize(("language", "word"), [("en", "noisy"), ("zh", "噪点")])
def test_what_is_wrong_with_an_image_stands_under_its_line(
    open_page: Callable[..., Any], images: dict[str, str], teller: str, language: str, word: str
) -> None:
    page = open_page(**{"Comfy.Locale": language})
    scored_graph(page, images)
    model = page.add("RALI_LoadModel", 420, 480, model=teller)
    score = page.page.evaluate("() => " + NODE.format("RALI_Score") + ".id")
    page.wire(model, 0, score, "model")
    page.run()
    page.state("current")
    page.shot(f"reasons-{language}")
    words = [text.split("、" if language == "zh" else ", ") for text in page.seen("data-rali-words", 2)]
    shown = page.page.locator(f"{PANEL} .rali-words:visible").all_inner_texts()
    assert [text.split("、" if language == "zh" else ", ") for text in shown] == [
        each for each in words if each != [""]
    ]
    assert any(word in each for each in words)
