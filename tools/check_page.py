#!/usr/bin/env python3
"""Drives the server's web page in a real browser: a document dropped in becomes a context, a question to it
is answered as it streams, it is forked and deleted, by keyboard, in a narrow window, light and dark.

    apt-get install chromium
    python -m venv clients && clients/bin/pip install playwright
    clients/bin/python tools/check_page.py target/debug/longview [--pictures FOLDER]

Playwright drives the browser that is installed; it downloads none.
"""

import argparse
import os
import re
import shutil
import sys

from serving import serving

GREY = "The sea was grey and the gulls were loud that day. " * 60
DOCUMENT = f"{GREY}The code of the harbor is 4711. {GREY}"
QUESTION = "What is the code of the harbor?"
ANSWER = "The code of the harbor is 4711."


def drive(url, browser, pictures):
    from playwright.sync_api import expect

    foreign, errors = [], []
    page = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
    page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith((url, "data:")) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(url)
    expect(page.locator("#model")).to_contain_text("tokens")

    # A file dropped anywhere on the page.
    page.evaluate(
        """([name, text]) => {
            const files = new DataTransfer();
            files.items.add(new File([text], name, { type: "text/plain" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
        }""", ["harbor.txt", DOCUMENT])
    item = page.locator("#contexts li").filter(has_text="harbor.txt")
    expect(item).to_have_count(1)
    expect(item.locator(".note")).to_contain_text(re.compile(r"[\d,]+ tokens · .* in memory"), timeout=30_000)
    expect(page.locator("#asked")).to_contain_text("harbor.txt")

    # Asked by keyboard alone, with a picture of where the attention rested.
    page.locator("#attention").focus()
    page.keyboard.press("Space")
    page.locator("#question").focus()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    answer = page.locator("#turns li.assistant").first
    expect(answer.locator(".said")).to_have_text(ANSWER, timeout=30_000)
    expect(answer.locator(".numbers")).to_contain_text(re.compile(r"tokens taken over, .* computed · first token after"))
    strip = answer.locator(".attention svg")
    expect(strip).to_have_attribute("aria-label", re.compile(r"attention rested"))
    expect(strip.locator("rect.mass").first).to_be_attached()
    answer.locator(".attention summary").focus()
    page.keyboard.press("Enter")
    if pictures:
        page.screenshot(path=os.path.join(pictures, "page-light.png"))

    # A method of the question's own, and one that there is not.
    # What is dropped cannot be looked at, so the picture is not asked for beside it.
    page.locator("#attention").uncheck()
    page.get_by_text("Methods", exact=True).click()
    page.locator("#keep").fill("streaming-llm(budget=256)")
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    answer = page.locator("#turns li.assistant").nth(1)
    expect(answer.locator(".numbers")).to_contain_text(re.compile(r"[\d,]+ of [\d,]+ pairs dropped"), timeout=30_000)
    page.locator("#keep").fill("snapvk")
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("#turns li.assistant").nth(2).locator(".numbers")).to_contain_text("snapkv", timeout=30_000)
    # The browser tells of every refusal.
    errors.clear()
    page.locator("#keep").fill("")

    page.get_by_role("button", name="Fork harbor.txt").first.click()
    expect(page.locator("#contexts li")).to_have_count(2)
    page.get_by_role("button", name="Pin harbor.txt").first.click()
    expect(page.locator("#contexts")).to_contain_text("pinned")
    page.get_by_role("button", name="Delete harbor.txt").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#contexts li")).to_have_count(1)

    # Narrow and dark: nothing sticks out.
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > 360:
        sys.exit(f"in a window of 360 pixels the page is {wide} wide")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if sum(int(part) for part in re.findall(r"\d+", dark)[:3]) > 200:
        sys.exit(f"the dark page has the background {dark}")
    if pictures:
        page.screenshot(path=os.path.join(pictures, "page-dark-narrow.png"), full_page=True)

    # What is wrong is said.
    page.evaluate(
        """() => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array([255, 254, 0])], "picture.png"));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
        }""")
    expect(page.locator("#contexts-note")).to_contain_text("not UTF-8 text")
    if foreign or errors:
        sys.exit(f"asked elsewhere: {foreign}; errors: {errors}")
    print("ok: the page")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/longview")
    parser.add_argument("--pictures", help="a folder for screenshots")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if not chromium:
        print("skipped: chromium or playwright is not installed")
        return
    with serving(options.program) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        drive(server.url, browser, options.pictures)
        browser.close()


if __name__ == "__main__":
    main()
