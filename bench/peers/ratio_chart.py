"""Bars of ratios on a logarithmic axis as an SVG file: one group a row, one bar a number of threads."""
import html
import math

BAR, GAP, LABEL, FIELD, MARGIN = 12, 8, 400, 560, 70
COLOURS = ["#4c78a8", "#72b7b2", "#54a24b", "#9d755d"]
BEHIND = "#e45756"


def ratio_chart(title, groups, footnote):
    """groups: [(label, target, [(series, ratio, met)])]. Bars start at 1; one that misses its target is outlined."""
    ratios = [ratio for _, target, bars in groups for _, ratio, _ in bars] + [target for _, target, _ in groups]
    low, high = min(0.5, 0.8 * min(ratios)), max(2.0, 1.2 * max(ratios))

    def x(ratio):
        return LABEL + FIELD * math.log(ratio / low) / math.log(high / low)

    series = list(dict.fromkeys(name for _, _, bars in groups for name, _, _ in bars))
    top, parts = 64, []
    y = top
    for label, target, bars in groups:
        height = BAR * len(bars)
        parts.append(text(LABEL - 8, y + height / 2 + 4, label, "end"))
        for name, ratio, met in bars:
            colour = COLOURS[series.index(name) % len(COLOURS)] if ratio >= 1 else BEHIND
            left, right = sorted((x(1), x(ratio)))
            parts.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"%s/>' % (
                left, y, max(right - left, 1), BAR - 1, colour,
                "" if met else ' stroke="%s" stroke-width="1.5"' % BEHIND))
            parts.append(text(max(right, x(target)) + 5, y + BAR - 2, "%.2f" % ratio, size=10))
            y += BAR
        parts.append(line(x(target), y - height - 2, x(target), y + 1, "#222", 2))
        y += GAP
    ticks = [k * 10 ** e for e in range(-3, 5) for k in (1, 2, 5) if low <= k * 10 ** e <= high]
    grid = [line(x(tick), top - 6, x(tick), y, "#bbb" if tick == 1 else "#e4e4e4", 1) for tick in ticks]
    grid += [text(x(tick), y + 14, "%g" % tick, "middle") for tick in ticks]
    head = [text(12, 22, title, size=15)]
    at = 12
    for i, name in enumerate(series):
        head.append('<rect x="%d" y="34" width="12" height="12" fill="%s"/>' % (at, COLOURS[i % len(COLOURS)]))
        head.append(text(at + 17, 44, name))
        at += 34 + 7 * len(name)
    head.append(text(at, 44, footnote, fill="#555"))
    width, height = LABEL + FIELD + MARGIN, y + 26
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" '
            'font-family="sans-serif" font-size="12">\n<rect width="100%%" height="100%%" fill="white"/>\n%s\n</svg>\n'
            % (width, height, width, height, "\n".join(grid + head + parts)))


def text(x, y, words, anchor="start", size=12, fill="black"):
    return '<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d" fill="%s">%s</text>' % (
        x, y, anchor, size, fill, html.escape(words))


def line(x1, y1, x2, y2, colour, width):
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%g"/>' % (
        x1, y1, x2, y2, colour, width)
