"""Looks at a report of `quantd eval` in headless Chromium, and takes pictures of it.

    python3 tests/engine/eval/report_check.py docs/eval/demo.html                  checks
    python3 tests/engine/eval/report_check.py REPORT.html --picture docs/eval/demo.png

Checked, light, dark and on a narrow window: every text of a plot lies inside its plot, no two names of the scatter plot
lie on each other, the page is not wider than the window, text differs from its ground by a contrast of at least 4.5
(WCAG 2.1, AA). And the print-out is some pages of PDF.
"""
import argparse
import html
import json
import pathlib
import re
import subprocess
import tempfile

# Runs in a copy of the page; what it finds becomes the copy's only text.
PROBE = """
<script>
addEventListener("load", () => {
  const faults = [];
  const name = e => JSON.stringify(e.textContent.slice(0, 40));
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.viewBox.baseVal;
    for (const text of svg.querySelectorAll("text")) {
      const b = text.getBBox();
      if (b.x < -1 || b.y < -1 || b.x + b.width > box.width + 1 || b.y + b.height > box.height + 1)
        faults.push(`${svg.getAttribute("aria-label")}: ${name(text)} leaves the plot`);
    }
  }
  const names = [...document.querySelectorAll("svg[aria-label='quality against memory'] text.name")];
  names.forEach((a, i) => names.slice(i + 1).forEach(b => {
    const p = a.getBBox(), q = b.getBBox();
    const w = Math.min(p.x + p.width, q.x + q.width) - Math.max(p.x, q.x);
    const h = Math.min(p.y + p.height, q.y + q.height) - Math.max(p.y, q.y);
    if (w > 2 && h > 4) faults.push(`${name(a)} and ${name(b)} lie on each other`);
  }));
  if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} wide`);
  const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => { const [r, g, b] = rgb(c).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const low = new Set();
  for (const e of document.querySelectorAll("p, h1, h2, td, th, dt, dd, figcaption, .card span, .card b, svg text:not(.in)")) {
    const style = getComputedStyle(e);
    const ink = light(e instanceof SVGElement ? style.fill : style.color);
    const contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (contrast < 4.5) low.add(`${e.tagName} ${e.className.baseVal ?? e.className}: contrast ${contrast.toFixed(2)}`);
  }
  faults.push(...low);
  const seen = {texts: document.querySelectorAll("svg text").length, plots: document.querySelectorAll("svg").length,
                rows: document.querySelectorAll("tbody tr").length, dark: ground < 0.5};
  document.documentElement.innerHTML = "<body><pre></pre></body>";
  document.querySelector("pre").textContent = JSON.stringify({faults, seen});
});
</script>
"""


def chromium(*arguments):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def scheme(dark):
    # The value of PreferredColorScheme in Blink's settings: 0 dark, 1 light.
    return f"--blink-settings=preferredColorScheme={0 if dark else 1}"


def probe(page, dark, width):
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy.html"
        copy.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
        dom = chromium(scheme(dark), f"--window-size={width},900", "--dump-dom", copy.as_uri())
    found = re.search(r"<pre>(.*?)</pre>", dom, re.S)
    assert found, f"{page}: the probe did not run"
    return json.loads(html.unescape(found.group(1)))


def check(page):
    faults = []
    for dark in (False, True):
        for width in (1200, 500):
            result = probe(page, dark, width)
            seen = result["seen"]
            assert seen["dark"] == dark, "the page does not follow the system's colours"
            assert seen["plots"] >= 1 and seen["texts"] > 10 and seen["rows"] >= 1, f"{page}: shows {seen}"
            faults += [f"{'dark' if dark else 'light'}, {width} wide: {f}" for f in result["faults"]]
    with tempfile.TemporaryDirectory() as folder:
        pdf = pathlib.Path(folder) / "report.pdf"
        chromium(f"--print-to-pdf={pdf}", page.resolve().as_uri())
        pages = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 1 <= pages <= 12, f"{page}: prints {pages} pages"
    assert not faults, "\n".join([f"{page}:", *faults])
    print(f"{page}: {seen['plots']} plots, {seen['rows']} profiles; light, dark, wide, narrow and {pages} printed pages")


def shrink(picture):
    """To a third of its bytes, where Pillow is there: plots have few colours."""
    try:
        from PIL import Image
    except ImportError:
        return print(f"{picture}: as it is, Pillow (PyPI) would make it smaller")
    Image.open(picture).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(picture, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path, help="a PNG of the page's beginning")
    parser.add_argument("--dark", action="store_true", help="of the picture")
    args = parser.parse_args()
    check(args.report)
    if args.picture:
        chromium(scheme(args.dark), "--window-size=1100,840", f"--screenshot={args.picture.resolve()}",
                 args.report.resolve().as_uri())
        shrink(args.picture)


if __name__ == "__main__":
    main()
