"""What of the page's looks a program can check: contrast and use by keyboard. Used by check.py."""

# Every visible text against the ground behind it, by WCAG 2: 4.5, or 3 for large text.
CONTRAST = """
() => {
  const rgba = (text) => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 1;
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3)
    .map((part, index) => part * top[3] + below[index] * (1 - top[3])).concat(1);
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let it = element; it; it = it.parentElement) {
      layers.push(rgba(getComputedStyle(it).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const faults = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.disabled || element.closest('noscript')) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const text = over(rgba(style.color), below);
    const [high, low] = [light(text), light(below)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      faults.push(`${ratio.toFixed(2)}: ${element.textContent.trim().slice(0, 40)}`);
    }
  }
  return faults;
}
"""

# Everything that a mouse can use, that is shown.
USABLE = "button, a[href], input, canvas, [tabindex='0']"


def contrast_faults(page):
    return page.evaluate(CONTRAST)


def check_keyboard(page):
    """Tab reaches whatever can be used, each with a mark that it is there and with a name."""
    wanted = page.evaluate(
        """(usable) => [...document.querySelectorAll(usable)]
            .filter((it) => it.checkVisibility({ visibilityProperty: true }))
            .filter((it) => !it.disabled && it.tabIndex >= 0)
            .filter((it) => !it.closest('dialog')).length""",
        USABLE,
    )
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """(usable) => {
                const it = document.activeElement;
                if (!it || it === document.body) return null;
                const name = it.getAttribute('aria-label') || it.labels?.[0]?.textContent ||
                  it.textContent || it.getAttribute('aria-labelledby') || '';
                const all = [...document.querySelectorAll(usable)];
                return [all.indexOf(it), name.trim(), getComputedStyle(it).outlineStyle];
            }""",
            USABLE,
        )
        if found is None:
            continue
        index, name, outline = found
        assert name != "", f"the element {index} has no name"
        assert outline != "none", f"{name!r} does not show its focus"
        reached.add(index)
    assert len(reached) >= wanted, f"{len(reached)} of {wanted} elements are reached by Tab"
