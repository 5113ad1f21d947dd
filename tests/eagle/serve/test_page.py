"""The page in headless Chromium, on the demo pair."""

import json
import re

import pytest

from eagle import EagleModel
from tests.eagle.serve import chromium
from tests.eagle.serve.running import PAIR, running

pytest.importorskip("aiohttp")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine"),
]

ATTACK = '<img src=x onerror="window.broken=1"><script>window.broken=1</script></span>'
CONTRAST = """(() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (color) => rgb(color).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if ((rgb(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, box = element.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || !box.width) continue;
    if (element.closest(".sr, script, style, title, .inside")) continue;
    const style = getComputedStyle(element);
    const front = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(front), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.slice(0, 30), front]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()"""


@pytest.fixture(scope="module")
def url():
    model = EagleModel.from_pretrained(*PAIR)
    with running(model, {"tree": "hybrid", "verifier": "hsd", "nodes": 12, "depth": 4}) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Browser(chromium.find(), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def nothing_kept(browser, url):
    """Nothing of the test before is in the browser's storage; the steps are shown."""
    browser.open(url)
    browser.do("localStorage.clear(); localStorage.setItem('layer', '1'); 0")
    browser.messages.clear()


def send(browser, text: str, tokens: int = 10) -> None:
    """Type a message and wait for its answer."""
    browser.do(f"document.querySelector('#tokens').value = {tokens}; document.querySelector('#message').focus()")
    browser.type(text)
    browser.press("Enter")
    browser.wait("document.querySelector('#send').textContent === 'Send'")


def texts(browser, selector: str) -> list[str]:
    return browser.do(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")


def test_a_message_is_answered_in_tinted_steps_with_trees(browser, url):
    browser.open(url)
    send(browser, "What is 2 + 3?")
    steps = texts(browser, ".answer .step")
    assert len(steps) > 1
    tints = browser.do("[...document.querySelectorAll('.step')].map((one) => getComputedStyle(one).backgroundColor)")
    assert all(one != other for one, other in zip(tints, tints[1:])), "neighbors differ"
    assert "tok/s" in texts(browser, ".facts")[0]
    assert len(texts(browser, "#bars .hit")) == len(steps) - 1
    assert texts(browser, "#tree-title") == [f"Draft tree of step {len(steps) - 1}"]
    shapes = browser.do(
        "['rect.shape', 'circle.shape'].map((one) => document.querySelectorAll('#scroll ' + one).length)"
    )
    assert sum(shapes) == 12 and all(shapes), "squares and circles"
    assert browser.do("document.querySelectorAll('#scroll .edge.on').length") > 0
    browser.do("document.querySelector('#table').open = true")
    browser.wait("document.querySelectorAll('#table tbody tr').length === 12")
    stops = [float(row) for row in texts(browser, "#table td:last-child")]
    assert sum(stops) == pytest.approx(1, abs=0.01)
    assert browser.faults() == []


def test_a_tree_is_opened_by_keyboard_and_by_mouse(browser, url):
    browser.open(url)
    send(browser, "What is 2 + 3?")
    last = len(texts(browser, ".step")) - 1
    browser.do("document.querySelector('#reset').focus()")
    for _ in range(10):
        browser.press("Tab")
        if browser.do("document.activeElement.classList.contains('step')"):
            break
    assert browser.do("document.activeElement.classList.contains('step')"), "steps are reached with Tab"
    browser.press("End")
    browser.wait(f"document.querySelector('#tree-title').textContent === 'Draft tree of step {last}'")
    browser.press("ArrowLeft")
    goal = f"Draft tree of step {last - 1}" if last > 1 else "First token"
    browser.wait(f"document.querySelector('#tree-title').textContent === '{goal}'")
    assert "Step" in browser.do("document.activeElement.getAttribute('aria-label')") or last == 1
    box = browser.do("(({x, y}) => [x, y])(document.querySelectorAll('.step')[0].getClientRects()[0])")
    browser.point(box[0] + 3, box[1] + 5)
    browser.wait("document.querySelector('#tree-title').textContent === 'First token'")
    browser.point(2, 2)
    browser.wait(f"document.querySelector('#tree-title').textContent === '{goal}'")


def test_text_of_user_and_model_is_never_markup(browser, url):
    """The model's text and tokens are replaced by an attack on their way to the page."""
    browser.open(url)
    browser.do(
        f"""window.plainFetch = window.fetch; window.fetch = async (...args) => {{
          const answer = await plainFetch(...args);
          if (args[0] !== "steps") return answer;
          const lines = (await answer.text()).trim().split("\\n").map(JSON.parse);
          for (const line of lines) if (line.event === "step") {{
            line.text = {ATTACK!r};
            if (line.tree) {{ line.tree.text = line.tree.text.map(() => {ATTACK!r}); line.tree.bonus = {ATTACK!r}; }}
          }}
          return new Response(lines.map((line) => JSON.stringify(line) + "\\n").join(""));
        }}; 0"""
    )
    send(browser, ATTACK)
    browser.do("document.querySelector('#table').open = true")
    browser.wait("document.querySelectorAll('#table tbody tr').length > 1")
    assert texts(browser, ".user") == [ATTACK]
    assert set(texts(browser, ".answer .step")) == {ATTACK}
    assert browser.do("document.querySelectorAll('img, script[src], .step *, .user *').length") == 0
    assert browser.do("document.querySelectorAll('script').length") == 1
    assert browser.do("window.broken === undefined")


def test_its_policy_refuses_scripts_and_other_servers(browser, url):
    browser.open(url)
    inserted = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken=1\">')"
    browser.do(f"{inserted}; new Promise((done) => setTimeout(done, 200))")
    assert browser.do("window.broken === undefined")
    assert browser.do("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)") == "TypeError"
    assert any("Content Security Policy" in fault for fault in browser.faults())
    browser.messages.clear()


def test_a_refused_request_is_explained_and_the_message_kept(browser, url):
    browser.open(url)
    long = "word " * 3000
    send(browser, long)
    [alert] = texts(browser, "[role=alert]")
    assert "context" in alert and "shorten the prompt" in alert
    assert browser.do("document.querySelector('#message').value") == long.strip()
    browser.messages.clear()


def test_plain_and_auto_race_on_the_same_prompt(browser, url):
    browser.open(url)
    browser.do("document.querySelector('#method-plain').click()")
    send(browser, "What is 2 + 3?", tokens=6)
    assert "plain" in texts(browser, ".facts")[0]
    assert len(texts(browser, ".step")) <= 6
    assert texts(browser, ".method .rate") == ["–"] * 5, "rates of different prompts are not compared"
    browser.do("document.querySelector('#measure').click()")
    browser.wait("document.querySelector('.verdict') && !state.running")
    assert re.fullmatch(r"[0-9.]+x, same distribution(; plain decoding is faster here)?", *texts(browser, ".verdict"))
    assert texts(browser, ".race h3") == ["plain", "auto"]
    assert all("tok/s" in text for text in texts(browser, ".race .facts"))
    assert sum("×" in one for one in texts(browser, ".method .rate")) == 1


def messages(browser) -> list[list[str]]:
    return browser.do("state.messages.map((message) => [message.role, message.content])")


def test_a_conversation_outlives_a_reload(browser, url):
    browser.open(url)
    browser.do("document.querySelector('#system').value = 'Be brief.'")
    send(browser, "What is 2 + 3?", tokens=4)
    send(browser, "And 4?", tokens=4)
    before = messages(browser)
    assert [role for role, _ in before] == ["user", "assistant"] * 2
    browser.open(url)
    browser.wait("state.messages.length === 4")
    assert messages(browser) == before
    assert texts(browser, ".user") == ["What is 2 + 3?", "And 4?"]
    assert browser.do("document.querySelector('#system').value") == "Be brief."
    browser.do("document.querySelector('#reset').click()")
    assert messages(browser) == [] and texts(browser, ".user") == []
    send(browser, "Another one", tokens=2)
    browser.do("document.querySelector('#list').click()")
    assert texts(browser, "#saved li button:first-child") == ["Another one", "What is 2 + 3?"]
    browser.do("document.querySelectorAll('#saved li button:first-child')[1].click()")
    assert messages(browser) == before
    browser.do("document.querySelector('#list').click(); document.querySelector('#saved li.on .quiet').click()")
    assert messages(browser) == [] and texts(browser, "#saved li button:first-child") == ["Another one"]


def test_edit_regenerate_and_stop(browser, url):
    browser.open(url)
    browser.do("document.querySelector('#seed').value = ''")
    send(browser, "One day", tokens=8)
    first = messages(browser)
    for _ in range(5):
        browser.do("document.querySelector('.again').click()")
        browser.wait("!state.running")
        if messages(browser) != first:
            break
    assert messages(browser)[0] == first[0] and len(messages(browser)) == 2
    assert messages(browser) != first, "another sample"
    browser.do("document.querySelector('.asked .quiet').click()")
    assert messages(browser) == [] and browser.do("document.querySelector('#message').value") == "One day"
    browser.do("document.querySelector('#message').value = ''; document.querySelector('#tokens').value = 1500")
    browser.do("document.querySelector('#message').focus()")
    browser.type("Tell a long story.")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('.step').length > 2")
    browser.do("document.querySelector('#send').click()")
    browser.wait("!state.running")
    assert "stopped" in texts(browser, ".facts")[-1] or "tokens" in texts(browser, ".facts")[-1]
    assert [role for role, _ in messages(browser)] == ["user", "assistant"]


MARKDOWN = """## Head

Some **bold**, *slanted* and `code<b>` text, [a link](https://example.org/x).

- one
- two

3. three

| a | b |
|---|---|
| 1 | <i>2</i> |

> quoted

```python
if a < b:
    print("<script>window.broken=1</script>")
```
[no link](javascript:alert(1)) <img src=x onerror="window.broken=1">"""


def test_markdown_becomes_elements_and_html_stays_text(browser, url):
    browser.open(url)
    kept = {"role": "assistant", "content": MARKDOWN}
    browser.do(f"state.messages = [{{role: 'user', content: 'Hi'}}, {json.dumps(kept)}]; draw_messages(); 0")
    inside = lambda selector: texts(browser, f".markdown {selector}")
    assert inside("h4") == ["Head"] and inside("strong") == ["bold"] and inside("em") == ["slanted"]
    assert inside("p code") == ["code<b>"] and inside("ul li") == ["one", "two"] and inside("ol li") == ["three"]
    assert inside("td") == ["1", "<i>2</i>"] and inside("blockquote p") == ["quoted"]
    assert inside("pre code") == ['if a < b:\n    print("<script>window.broken=1</script>")']
    assert browser.do("[...document.querySelectorAll('.markdown a')].map((a) => a.href)") == ["https://example.org/x"]
    assert browser.do("document.querySelectorAll('.markdown img, .markdown script, .markdown i').length") == 0
    assert browser.do("window.broken === undefined")
    assert browser.do("document.querySelector('.markdown ol').start") == 3
    assert inside(".code .quiet") == ["Copy"]
    assert browser.do("[...document.querySelectorAll('.user, .markdown p')].every((one) => one.dir === 'auto')")
    assert browser.faults() == []


def test_a_conversation_is_exported(browser, url):
    browser.open(url)
    browser.do("document.querySelector('#system').value = 'Be brief.'; window.saved = null")
    browser.do("download = (name, text) => { window.saved = [name, text]; }")
    send(browser, "Hello", tokens=2)
    browser.do("document.querySelector('#export').click()")
    name, text = browser.do("window.saved")
    sent = json.loads(text)["messages"]
    assert name == "chat.jsonl" and [one["role"] for one in sent] == ["system", "user", "assistant"]


def test_it_opens_as_a_chat_and_asks_for_a_key_where_there_is_one(browser, url):
    browser.do("localStorage.clear()")
    browser.open(url)
    assert browser.do("getComputedStyle(document.querySelector('aside')).display") == "none"
    send(browser, "Hello", tokens=2)
    assert browser.do("document.querySelector('.answer .markdown').getBoundingClientRect().height") > 0
    assert browser.do("document.querySelector('.answer .text').getBoundingClientRect().height") == 0
    browser.do("document.querySelector('#layer').click()")
    assert browser.do("getComputedStyle(document.querySelector('aside')).display") != "none"
    assert browser.do("document.querySelector('.answer .text').getBoundingClientRect().height") > 0


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone(browser, url, width):
    browser.open(url, width, 740)
    send(browser, "W" * 120 + " What is 2 + 3?")
    assert browser.do("document.documentElement.scrollWidth") == width, "no horizontal scrolling"
    assert not browser.do("document.querySelector('#tree').classList.contains('open')")
    browser.do("[...document.querySelectorAll('.step')].at(-1).click()")
    browser.wait("document.querySelector('#tree').getBoundingClientRect().bottom <= innerHeight + 1")
    assert browser.do("document.documentElement.scrollWidth") == width
    small = (
        "[...document.querySelectorAll('#tree .quiet, .send')].filter((one) => one.getBoundingClientRect().height < 26)"
    )
    assert browser.do(f"{small}.length") == 0, "large enough to be tapped"
    browser.press("Escape")
    assert not browser.do("document.querySelector('#tree').classList.contains('open')")


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(browser, url, dark):
    browser.open(url, dark=dark)
    send(browser, "What is 2 + 3?")
    browser.do("document.querySelector('#table').open = true; 0")
    background = browser.do("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 20, 23)") == dark
    found = browser.do(CONTRAST)
    assert len(found) > 60
    assert found[0][0] >= 4.5, found[:3]
