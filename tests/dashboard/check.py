#!/usr/bin/env python3
"""Looks at the agent's page as a person does: in Chromium, over a real agent and a real tiny run.
Values equal the API's; token, buttons, log, zoom, reconnects and all kinds of ends work.

Needs `pip install playwright` and a Chromium (Debian's package `chromium`); downloads nothing.

    tests/dashboard/check.py                          # starts target/release/agent and trainer
    tests/dashboard/check.py --only reconnect stop    # some of it
    tests/dashboard/check.py --shots out/shots        # keeps pictures
    tests/dashboard/check.py --url http://… --token-file F    # looks at a live one, orders nothing
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from playwright.sync_api import expect, sync_playwright  # noqa: E402

import looks  # noqa: E402
from scene import CONTROL, HOSTILE, READ, Agent, wait  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# A run that outlasts what is looked at.
LONG = ["--max_iters=1000000", "--lr_decay_iters=1000000", "--eval_interval=500"]
LONG += ["--checkpoint_interval=2000"]
LOOKS = [("desktop", False, 1440), ("dark", True, 1440), ("phone", False, 360)]
LOOKS += [("wide", True, 2560)]
# The page calls itself stale after 20 s without a word.
SILENCE_MS = 35_000


class Page:
    """A page in a browser of its own, with what it asked for and complained of."""

    def __init__(self, browser, url, width=1440, height=900, dark=False, **options):
        scheme = "dark" if dark else "light"
        view = {"width": width, "height": height}
        self.context = browser.new_context(viewport=view, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.origin = url
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(url)

    def _console(self, message):
        # What fails on the way is a line of its own; the page has to live with it.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.check_manners()
        finally:
            self.context.close()

    def check_manners(self):
        """Nothing from elsewhere, no token where it can be read later, no complaint."""
        assert self.complaints == [], self.complaints
        for url in self.requests:
            assert url.startswith(self.origin), f"asked elsewhere: {url}"
            assert CONTROL not in url and READ not in url, f"a token in a URL: {url}"
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        kept = self.page.evaluate(kept)
        assert CONTROL not in kept and READ not in kept, f"a token is kept: {kept}"

    def token(self, value):
        self.page.fill("#token", value)
        self.page.click("#token-form button[type=submit]")

    def enter(self, value=CONTROL):
        expect(self.page.locator("#token-dialog")).to_be_visible()
        self.token(value)
        expect(self.page.locator("#token-dialog")).to_be_hidden()
        self.live()

    def live(self):
        expect(self.page.locator("#live")).to_have_attribute("data-state", "live", timeout=20_000)

    def text(self, name):
        return self.page.text_content(f'[data-field="{name}"]').strip()

    def value(self, name):
        return self.page.get_attribute(f'[data-field="{name}"]', "data-value")

    def seqs(self):
        """Cursors of the log's lines as they stand on the page."""
        rows = "rows => rows.map(row => Number(row.dataset.seq))"
        return self.page.eval_on_selector_all("#log .line[data-seq]", rows)

    def readout(self, key):
        return self.page.locator(f'[data-series="{key}"]')


def check_token(agent, browser):
    """Nothing is shown without a token; one for reading unlocks no buttons."""
    with Page(browser, agent.proxy.url) as it:
        expect(it.page.locator("#token-dialog")).to_be_visible()
        assert it.text("id") == "…", it.text("id")
        it.token("no-such-token-no-such-token")
        expect(it.page.locator("#token-error")).to_contain_text("does not know")
        it.enter(READ)
        assert it.text("id") == "page/tiny", it.text("id")
        expect(it.page.locator("#toasts")).to_contain_text("may only read")
        for name in ("checkpoint", "limits", "stop"):
            expect(it.page.locator(f"#do-{name}")).to_be_hidden()
        it.page.click("#do-token")
        it.enter(CONTROL)
        for name in ("checkpoint", "limits", "stop"):
            expect(it.page.locator(f"#do-{name}")).to_be_visible()
        it.page.click("#do-token")
        it.page.click("#token-forget")
        expect(it.page.locator("#do-stop")).to_be_hidden()


def fields(status):
    """What the page must hold of a status, by the names of its fields."""
    progress = status["progress"]
    names = ["step", "loss", "val_loss", "tokens", "tokens_per_second", "mfu", "percent", "lr"]
    wanted = {f"progress.{name}": progress.get(name) for name in [*names, "grad_norm"]}
    for name in ("id", "status", "phase", "provider", "attempt", "preemptions", "restarts"):
        wanted[name] = status[name]
    wanted["cost_so_far"] = status["cost_so_far"]
    wanted["estimated_total"] = status.get("estimated_total")
    wanted["cost.price_per_hour"] = status.get("cost", {}).get("price_per_hour")
    wanted["checkpoint.steps_at_risk"] = status["checkpoint"].get("steps_at_risk")
    return wanted


def differences(it, status):
    found = {}
    for name, wanted in fields(status).items():
        shown = it.value(name)
        if isinstance(wanted, (int, float)):
            same = shown is not None and abs(float(shown) - wanted) <= 1e-9 * abs(wanted)
        else:
            same = shown == wanted
        # A pause of the trainer stops steps, not the price of time.
        if not same and name not in ("cost_so_far", "estimated_total"):
            found[name] = (shown, wanted)
    return found


def check_values(agent, browser):
    """With the trainer paused the page comes to show exactly what the API says."""
    with Page(browser, agent.proxy.url) as it:
        it.enter()
        wait("a validation loss", lambda: it.value("progress.val_loss"))
        agent.signal_trainers(signal.SIGSTOP)
        try:
            wait("the page equals the API", lambda: not differences(it, agent.api("")), 20)
        except AssertionError:
            raise AssertionError(f"page and API differ: {differences(it, agent.api(''))}") from None
        finally:
            agent.signal_trainers(signal.SIGCONT)
        status = agent.api("")
        total = f"{status['progress']['total_steps']:,}".replace(",", "\u202f")
        assert it.page.text_content("#total-steps") == f"of {total}"
        assert "%" in it.page.title() and "page/tiny" in it.page.title(), it.page.title()
        steps = [row["step"] for row in agent.api("/checkpoints")["checkpoints"]]
        wait("the table has the store's checkpoints", lambda: table(it)[:1] >= steps[:1], 30)
        expect(it.page.locator("#events li").first).to_be_visible()


def table(it):
    rows = "rows => rows.map(row => Number(row.dataset.step))"
    return it.page.eval_on_selector_all("#checkpoints tr", rows)


def check_curves(agent, browser):
    """The values above a chart are the API's, under the cursor too; zoom and keys work."""
    with Page(browser, agent.proxy.url) as it:
        it.enter()
        wait("some steps", lambda: agent.api("")["progress"].get("step", 0) > 600)
        agent.signal_trainers(signal.SIGSTOP)
        try:
            curves(agent, it)
        finally:
            agent.signal_trainers(signal.SIGCONT)


def curves(agent, it):
    def last(name):
        series = agent.api("/metrics?max_points=600")["series"]
        return next(one["points"][-1] for one in series if one["name"] == name)

    for name in ("loss", "lr", "grad_norm", "tokens_per_second", "val_loss"):
        shown = it.readout(name)
        wait(f"{name} equals the API's", lambda: float(shown.get_attribute("data-value"))
             == last(name)["last"], 40)  # fmt: skip
    canvas = it.page.locator("[data-chart=loss] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["y"] + box["height"] / 2
    it.page.mouse.move(box["x"] + box["width"] / 2, middle)
    at = it.page.locator("[data-chart=loss] .readout.at")
    expect(at).to_contain_text("step ")
    step = int("".join(letter for letter in at.text_content() if letter.isdigit()))
    points = next(one["points"] for one in agent.api("/metrics?max_points=600")["series"]
                  if one["name"] == "loss")  # fmt: skip
    wanted = next(point["last"] for point in points if point["step"] == step)
    assert float(it.readout("loss").get_attribute("data-value")) == wanted, (step, wanted)
    # The other charts follow.
    expect(it.page.locator("[data-chart=lr] .readout.at")).to_contain_text("step ")
    before = it.page.locator("[data-chart=lr] canvas").screenshot()
    it.page.mouse.down()
    it.page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=5)
    it.page.mouse.up()
    expect(it.page.locator("#zoom-reset")).to_be_visible()
    assert it.page.locator("[data-chart=lr] canvas").screenshot() != before, "no zoom"
    it.page.click("#zoom-reset")
    expect(it.page.locator("#zoom-reset")).to_be_hidden()
    linear = canvas.screenshot()
    it.page.check("#log-scale")
    assert canvas.screenshot() != linear, "the log scale changes nothing"
    it.page.uncheck("#log-scale")
    it.page.locator("#smoothing").fill("0")
    assert canvas.screenshot() != linear, "smoothing changes nothing"
    canvas.focus()
    it.page.keyboard.press("ArrowLeft")
    first = at.text_content()
    it.page.keyboard.press("Shift+ArrowLeft")
    expect(at).not_to_have_text(first)
    it.page.keyboard.press("+")
    expect(it.page.locator("#zoom-reset")).to_be_visible()
    it.page.keyboard.press("0")
    expect(it.page.locator("#zoom-reset")).to_be_hidden()
    assert "step" in canvas.get_attribute("aria-label"), canvas.get_attribute("aria-label")


def check_log(agent, browser):
    """Lines are the API's, as text; filter, pause and search of the whole log work."""
    with Page(browser, agent.proxy.url) as it:
        it.enter()
        log = it.page.locator("#log")
        it.page.fill("#log-filter", "onerror")
        it.page.click("#log-all")
        expect(log.locator(".line").first).to_contain_text(HOSTILE)
        assert log.locator("img, script").count() == 0, "a line became markup"
        assert it.page.title() != "owned", "a line was obeyed"
        expect(it.page.locator("#log-count")).to_contain_text("whole log")
        it.page.fill("#log-filter", "")
        it.page.click("#log-pause")
        shown = it.seqs()
        expect(it.page.locator("#log-count")).to_contain_text("waiting")
        wait("lines wait", lambda: " 0 lines waiting" not in it.page.text_content("#log-count"))
        assert it.seqs() == shown, "a paused log moved"
        it.page.click("#log-pause")
        wait("the log moves on", lambda: len(it.seqs()) > len(shown))
        check_lines(agent, it)


def check_lines(agent, it):
    """No line twice, none missing, each as the API has it."""
    seqs = it.seqs()
    newest = {line["seq"]: line["line"] for line in agent.api("/logs?tail=5000")["lines"]}
    known = [seq for seq in sorted(newest) if seqs[0] <= seq <= seqs[-1]]
    assert seqs == known, f"lines differ: {sorted(set(seqs) ^ set(known))[:10]}, {len(seqs)} shown"
    row = it.page.locator(f'#log .line[data-seq="{seqs[-1]}"]')
    assert row.text_content().endswith(newest[seqs[-1]]), row.text_content()


def check_reconnect(agent, browser):
    """A cut is said, with the age of what is shown; afterwards no line is missing or twice."""
    with Page(browser, agent.proxy.url) as it:
        it.enter()
        wait("lines", it.seqs)
        banner = it.page.locator("#banner")
        agent.proxy.set_cut(True)
        try:
            expect(banner).to_contain_text("No connection", timeout=15_000)
            expect(banner).to_contain_text(" old.")
            expect(it.page.locator("#live")).to_have_attribute("data-state", "stale")
            step = int(it.value("progress.step"))
            time.sleep(2)
            assert int(it.value("progress.step")) == step, "values move without a connection"
        finally:
            agent.proxy.set_cut(False)
        it.page.click("#banner-button")
        it.live()
        expect(banner).to_be_hidden()
        wait("values move again", lambda: int(it.value("progress.step")) > step)
        check_lines(agent, it)


def check_stale(agent, browser):
    """An agent that says nothing while its connections stand is called silent."""
    with Page(browser, agent.proxy.url) as it:
        it.enter()
        agent.proxy.frozen = True
        try:
            live = it.page.locator("#live")
            expect(live).to_have_attribute("data-state", "stale", timeout=SILENCE_MS)
            expect(it.page.locator("#banner")).to_contain_text(" old.")
        finally:
            agent.proxy.frozen = False
        it.live()


def check_orders(agent, browser):
    """Checkpoint now and new limits are asked for twice, and reach the agent."""
    with Page(browser, agent.proxy.url) as it:
        it.enter()
        wait("training", lambda: agent.api("")["phase"] == "training")
        before = agent.api("")["checkpoint"].get("step", 0)
        it.page.click("#do-checkpoint")
        it.page.keyboard.press("Escape")
        expect(it.page.locator("#checkpoint-dialog")).to_be_hidden()
        it.page.click("#do-checkpoint")
        it.page.click("#checkpoint-dialog [type=submit]")
        expect(it.page.locator("#toasts")).to_contain_text("being saved")
        published = lambda: agent.api("")["checkpoint"].get("step", 0) > before  # noqa: E731
        wait("a checkpoint is published", published, 30)
        wait("the table shows it", lambda: (table(it) or [0])[0] > before, 30)
        it.page.click("#do-limits")
        field = it.page.locator("#limits-dialog [name=max_wall_seconds]")
        field.fill("never")
        it.page.click("#limits-dialog [type=submit]")
        expect(it.page.locator("#limits-dialog .error")).to_contain_text("expected a time")
        field.fill("7h30m")
        it.page.click("#limits-dialog [type=submit]")
        expect(it.page.locator("#limits-dialog")).to_be_hidden()
        if "limits" not in agent.api(""):
            print("    this agent's status has no limits: their change is not looked at")
            return
        changed = lambda: agent.api("")["limits"].get("max_wall_seconds") == 27_000  # noqa: E731
        wait("the limit is another", changed)


def check_looks(agent, browser, shoot):
    """Contrast, keyboard, and widths from a phone's to a wide screen, in both colour schemes."""
    for name, dark, width in LOOKS:
        with Page(browser, agent.proxy.url, width=width, dark=dark) as it:
            it.enter()
            wait("a loss", lambda: it.value("progress.loss"))
            shoot(it, name)
            faults = looks.contrast_faults(it.page)
            assert faults == [], faults
            wide = it.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{wide} pixels wider than a screen of {width}"
            if width == 1440 and not dark:
                looks.check_keyboard(it.page)


def check_stop(agent, browser):
    """A stop is asked for twice and obeyed; the page says that the run has ended."""
    with Page(browser, agent.proxy.url) as it:
        it.enter()
        it.page.click("#do-stop")
        it.page.click("#stop-dialog [data-cancel]")
        expect(it.page.locator("#stop-dialog")).to_be_hidden()
        it.page.click("#do-stop")
        it.page.click("#stop-dialog [type=submit]")
        ended(it, "The run has ended")
        assert it.value("phase") == "cancelled", it.value("phase")
        expect(it.page.locator("#banner")).to_contain_text("resumed from step")
        expect(it.page.locator("#do-stop")).to_be_hidden()
        assert agent.process.wait(60) == 12, agent.process.returncode
        time.sleep(5)
        # The agent is gone, and that is no news.
        expect(it.page.locator("#live")).to_have_attribute("data-state", "ended")
        ended(it, "The run has ended")


def ended(it, title):
    expect(it.page.locator("#live")).to_have_attribute("data-state", "ended", timeout=60_000)
    expect(it.page.locator("#banner-title")).to_contain_text(title)


def check_finished(programs, browser, shoot):
    """A run that comes to its end is said to be complete, with its last values."""
    short = ["--max_iters=1500", "--lr_decay_iters=1500", "--eval_interval=100"]
    flags = priced(programs)
    agent = Agent(programs, [*short, "--checkpoint_interval=500"], flags=flags)
    try:
        with Page(browser, agent.proxy.url) as it:
            it.enter()
            ended(it, "The run is complete")
            assert it.value("status") == "completed", it.value("status")
            # Steps are reported every few iterations; the last report may be of one before.
            assert 1490 <= int(it.value("progress.step")) <= 1500, it.value("progress.step")
            assert agent.process.wait(60) == 0, agent.process.returncode
            shoot(it, "finished")
    finally:
        agent.close()


def check_failed(programs, browser, shoot):
    """A run that diverges is said to have failed, and why."""
    # Warms up to a learning rate that no model bears.
    hot = ["--learning_rate=30", "--min_lr=30", "--warmup_iters=20000", "--grad_clip=0"]
    hot += ["--max_iters=30000", "--lr_decay_iters=30000", "--eval_interval=100"]
    flags = priced(programs)
    agent = Agent(programs, [*hot, "--checkpoint_interval=200"], flags=flags)
    try:
        with Page(browser, agent.proxy.url) as it:
            it.enter()
            ended(it, "The run has failed")
            expect(it.page.locator("#banner")).to_contain_text("the trainer exited with")
            assert it.value("status") == "failed", it.value("status")
            assert it.value("phase") == "diverged", it.value("phase")
            expect(it.page.locator("#events li").first).to_contain_text("diverged")
            shoot(it, "failed")
    finally:
        agent.close()


def priced(options):
    """Flags of the agent that let the card of costs show."""
    return [f"--price={options.price}", "--budget=5"] if options.price else []


def look_at(url, token, browser, shoot):
    """A live agent: its page shows it, and nothing is ordered."""
    for name, options in {
        "desktop": {},
        "dark": {"dark": True},
        "phone": {"width": 390, "height": 844, "device_scale_factor": 2},
    }.items():
        it = Page(browser, url, **options)
        if token:
            it.enter(token)
        it.live()
        wait("a job", lambda: it.value("id"))
        time.sleep(3)
        assert looks.contrast_faults(it.page) == [], looks.contrast_faults(it.page)
        assert it.complaints == [], it.complaints
        print(f"    {name}: {it.text('id')} {it.text('status')} {it.text('progress.step')}")
        shoot(it, name)
        it.context.close()


# In order; the stop ends the run that all before it look at.
CHECKS = [check_token, check_values, check_curves, check_log, check_reconnect, check_stale]
CHECKS += [check_orders, check_looks, check_stop]
ENDS = [check_finished, check_failed]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--agent", type=Path, default=ROOT / "target/release/agent")
    parser.add_argument("--trainer", type=Path, default=ROOT / "target/release/trainer")
    parser.add_argument("--data", type=Path, help="cache of datasets [default: a fresh one]")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--only", nargs="+", metavar="CHECK")
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--price", help="dollars an hour, for the pictures: as of `agent run`")
    parser.add_argument("--url")
    parser.add_argument("--token-file", type=Path)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory(prefix="dashboard-data-")
    options.data = options.data or Path(scratch.name)
    failures = []

    def shoot(it, name):
        if options.shots:
            options.shots.mkdir(parents=True, exist_ok=True)
            time.sleep(1)
            it.page.screenshot(path=options.shots / f"{name}.png", full_page=True)

    def attempt(check, *arguments):
        name = check.__name__.removeprefix("check_")
        if options.only and name not in options.only:
            return
        start = time.monotonic()
        try:
            check(*arguments)
            print(f"ok    {name} ({time.monotonic() - start:.1f} s)", flush=True)
        except Exception:
            failures.append(name)
            traceback.print_exc()
            print(f"FAIL  {name}: {check.__doc__}", flush=True)

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=options.chromium, args=arguments)
        print(f"Chromium {browser.version}")
        if options.url:
            token = options.token_file.read_text().strip() if options.token_file else ""
            attempt(look_at, options.url, token, browser, shoot)
        else:
            if not options.only or {c.__name__[6:] for c in CHECKS} & set(options.only):
                agent = Agent(options, LONG, flags=priced(options))
                try:
                    for check in CHECKS:
                        more = [shoot] if check is check_looks else []
                        attempt(check, agent, browser, *more)
                    if failures:
                        print(f"the agent said:\n{agent.output()}")
                finally:
                    agent.close()
            for check in ENDS:
                attempt(check, options, browser, shoot)
        browser.close()
    scratch.cleanup()
    print(json.dumps({"failed": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
