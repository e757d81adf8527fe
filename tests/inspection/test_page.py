"""The page of a run in a browser: headless Chromium does what a reader does, and the page is asked what it shows."""

import json
import re
import select
import shutil
import socketserver
import subprocess

import pytest

from lupi_trainer.inspection import read_run, write_page
from lupi_trainer.inspection.page import policy
from tests.inspection.runs import make_run


pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


def browse(folder, page, script: str, *flags: str, place: str = ""):
    """What `script`, the body of a function, returns inside the page, opened at `place`."""
    assert CHROMIUM, "no Chromium: `make test-browser` installs it"
    code = f"""
        addEventListener("error", (e) => (document.title = "ERROR " + e.message));
        const seen = JSON.stringify((() => {{ {script} }})());
        document.body.append(Object.assign(document.createElement("pre"), {{ id: "seen", textContent: seen }}));
    """
    text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{code}</script></body>")
    (allowed,) = re.findall(r"script-src '.*?'", policy(("script", code)))
    probed = folder / "probed.html"
    probed.write_text(text.replace("script-src", allowed, 1), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *FLAGS, *flags, profile, "--dump-dom", f"file://{probed}{place}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.fixture
def page(tmp_path):
    folder = make_run(tmp_path / "island run", rollouts=12, tokens=30, student_after=0.9931, acceptance_last=0.4)
    return write_page(read_run(folder), tmp_path / "page.html")


def test_curves_and_figures_are_those_of_the_run(tmp_path, page):
    seen = browse(
        tmp_path,
        page,
        """
        return {
            title: document.querySelector("h1").textContent,
            curves: [...document.querySelectorAll("figure")].map((f) => f.id),
            last: document.querySelector("#curve-acceptance .legend span").textContent,
            dots: document.querySelectorAll("#curve-loss circle").length,
            dot: document.querySelector("#curve-speed circle title").textContent,
            figures: [...document.querySelectorAll("#figures div")].map((d) => [d.title, d.firstChild.textContent]),
        };
        """,
    )
    assert seen["title"] == "island run"
    names = ("loss", "acceptance", "gamma", "closed_book", "speed", "teacher_share")
    assert seen["curves"] == [f"curve-{name}" for name in names]
    assert seen["last"] == "all: 40%" and seen["dots"] == 4 + 1 and seen["dot"] == "step 10: rollout 1,510"
    assert seen["figures"] == [["student_after: 0.9931", "0.993"], ["acceptance_last: 0.4", "40%"]]


def test_words_explain_themselves_and_nothing_of_the_run_is_read_as_html(tmp_path, page):
    seen = browse(
        tmp_path,
        page,
        """
        const abbrs = [...document.querySelectorAll("abbr")];
        return {
            titles: Object.fromEntries(abbrs.map((a) => [a.textContent, a.title])),
            hint: getComputedStyle(abbrs[0]).cursor,
            marks: [...document.querySelectorAll("#marks tbody tr")].map((row) => row.innerText.split("\\t")[0]),
            warnings: [...document.querySelectorAll("#warnings li")].map((item) => item.textContent),
            settings: document.querySelector("#tables summary").textContent,
            foreign: document.querySelectorAll("img, #tables b").length,
        };
        """,
    )
    titles = seen["titles"]
    assert "teacher accepted" in titles["student"] and "nats" in titles["color"] and "minimized" in titles["Loss"]
    assert "whose first token" in titles["first of a block"] and titles["gamma"] == 'Draft length "in" <tokens>.'
    assert seen["hint"] == "help" and seen["foreign"] == 0
    assert {"training loss", "closed-book, strict"} <= set(seen["marks"])
    assert seen["warnings"] == ["8 records do not divide", "<img onerror=alert(1)>"]
    assert seen["settings"] == "Settings: 3 that are not left at their defaults"


def test_every_token_tells_its_story(tmp_path, page):
    seen = browse(
        tmp_path,
        page,
        """
        const rollout = JSON.parse(document.getElementById("data").textContent).rollouts[0];
        const tokens = [...document.querySelectorAll("#columns .token")];
        const tips = {};
        for (const writer of ["teacher", "student"]) {
            const token = tokens.find((t) => t.dataset.writer === writer);
            token.dispatchEvent(new Event("mouseenter"));
            tips[writer] = document.getElementById("tip").innerText;
            token.dispatchEvent(new Event("mouseleave"));
        }
        return { tips, hidden: document.getElementById("tip").hidden, text: tokens.map((t) => t.textContent).join(""),
                 writers: tokens.map((t) => Number(t.classList.contains("teacher"))), rollout,
                 colors: ["teacher", "student"].map((w) =>
                    getComputedStyle(document.querySelector("#columns ." + w)).backgroundColor),
                 prompt: document.getElementById("prompt").textContent,
                 knowledge: document.querySelector("#knowledge p").textContent };
        """,
    )
    rollout = seen["rollout"]
    assert seen["text"] == "".join(rollout["completion"]) and seen["writers"] == rollout["from_teacher"]
    assert seen["colors"][0] != seen["colors"][1] and seen["hidden"]
    assert seen["prompt"] == "Question 0 </script><b>?" and seen["knowledge"] == "Knowledge 0."
    place = rollout["from_teacher"].index(1)
    chance = f"{100 * rollout['draft_teacher_probability'][place]:.1f}%"
    teacher = seen["tips"]["teacher"]
    assert f"“{rollout['draft'][place]}”" in teacher and chance in teacher and "0.000 nats" in teacher
    assert "the draft's rank for the teacher\t4" in teacher
    assert "rejected" not in seen["tips"]["student"] and "the student wrote" in seen["tips"]["student"]


def test_search_sort_and_compare(tmp_path, page):
    seen = browse(
        tmp_path,
        page,
        """
        const listed = () => [...document.querySelectorAll("#list button")].map((b) => Number(b.dataset.number));
        const change = (id, value, kind) => {
            document.getElementById(id).value = value;
            document.getElementById(id).dispatchEvent(new Event(kind));
        };
        const all = listed();
        change("sort", "divergence", "change");
        const sorted = listed();
        change("search", "QUESTION 4", "input");
        const found = listed();
        document.querySelector("#list button").click();
        const others = [...document.querySelectorAll("#compare option")].map((o) => o.textContent);
        change("compare", document.querySelectorAll("#compare option")[1].value, "change");
        const columns = [...document.querySelectorAll("#columns h2")].map((h) => h.textContent.split(" · ")[0]);
        change("color", "divergence", "change");
        const heat = getComputedStyle(document.querySelector("#columns .token")).backgroundColor;
        change("search", "설7", "input");
        return { all, sorted, found, others, columns, heat, korean: listed() };
        """,
    )
    assert seen["all"] == [*range(0, 12, 2), *range(1, 12, 2)] and seen["sorted"] == list(range(11, -1, -1))
    assert seen["found"] == [9, 8] and seen["korean"] == [7]
    assert seen["others"] == ["nothing", "step 0, training"]
    assert seen["columns"] == ["step 0, training", "step 20, training"]
    assert seen["heat"].startswith("rgba(194, 65, 12")


def test_an_infinite_divergence_is_the_largest(tmp_path):
    folder = make_run(tmp_path / "run", rollouts=6)
    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text(encoding="utf-8").split("\n") if line]
    lines[2]["divergence"][4] = None
    (folder / "rollouts.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    seen = browse(
        tmp_path,
        write_page(read_run(folder), tmp_path / "page.html"),
        """
        document.getElementById("sort").value = "divergence";
        document.getElementById("sort").dispatchEvent(new Event("change"));
        const first = document.querySelector("#list button");
        first.click();
        return { first: Number(first.dataset.number), note: first.querySelector("small").textContent,
                 heading: document.querySelector("#columns h2").textContent };
        """,
    )
    assert seen["first"] == 2 and "infinite" in seen["note"] and seen["heading"].endswith("mean divergence infinite")


def test_an_address_opens_a_rollout_beside_another(tmp_path, page):
    script = (
        'return [...document.querySelectorAll("#columns h2, #list [aria-current=true]")].map((e) => e.textContent);'
    )
    chosen, first, second = browse(tmp_path, page, script, place="#6,7")
    assert "Question 3" in chosen and first.startswith("step 0, training") and second.startswith("step 20, training")
    assert len(browse(tmp_path, page, script, place="#6,1")) == 2  # of another prompt: not beside it
    assert len(browse(tmp_path, page, script, place="#999")) == 2


def test_light_and_dark(tmp_path, page):
    script = "return getComputedStyle(document.body).backgroundColor;"
    light = browse(tmp_path, page, script)
    dark = browse(tmp_path, page, script, "--blink-settings=preferredColorScheme=0")
    brightness = [sum(map(int, re.findall(r"\\d+|[0-9]+", color)[:3])) for color in (light, dark)]
    assert brightness[0] > 700 and brightness[1] < 100


def test_nothing_from_outside_is_asked_for_and_no_other_script_runs(tmp_path, page):
    """As if a text of the run had become HTML: scripts, handlers, styles, pictures, requests."""
    added = (
        "<script>document.title = 'ran'</script><img id=one src=x onerror=\"document.title = 'ran'\">"
        "<p id=two style='color: red'></p></main>"
    )
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", added, 1), encoding="utf-8")
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        seen = browse(
            tmp_path,
            page,
            f"""
            fetch("{address}").catch(() => 0);
            document.body.append(Object.assign(document.createElement("img"), {{ src: "{address}" }}));
            return {{ title: document.title, color: getComputedStyle(document.getElementById("two")).color,
                      curve: getComputedStyle(document.querySelector(".legend i")).backgroundColor }};
            """,
        )
        assert select.select([server.socket], [], [], 0.1) == ([], [], [])  # nobody has come
    assert seen["title"] == "island run" and seen["color"] != "rgb(255, 0, 0)"
    assert seen["curve"] != "rgba(0, 0, 0, 0)"  # the page's own colors are its script's


def test_of_a_thousand_rollouts_only_the_one_that_is_read_is_drawn(tmp_path):
    """How long the page takes to open is measured by `python -m tests.benchmarks.page`."""
    folder = make_run(tmp_path / "run", rollouts=1000, tokens=60, longest=1000)
    page = write_page(read_run(folder), tmp_path / "page.html")
    script = "return ['#list li', '*'].map((what) => document.querySelectorAll(what).length);"
    listed, elements = browse(tmp_path, page, script)
    assert listed == 1000
    assert elements < 8000  # a row of the list is a few, a token is one: all of them would be 60,000 more
