"""Building blocks of a web page in one file: no scripts, nothing from elsewhere.

Text that is not `Markup` is escaped wherever it enters a block, so names and messages from data
sets and logs cannot become part of the page's code.
"""

import base64
from collections.abc import Iterable, Sequence

from markupsafe import Markup

STYLE = """
:root { --ink: #1d2530; --soft: #5b6675; --line: #e3e6ea; --tint: #f5f7f9; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans",
  Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 75ch; }
p.lead { font-size: 1.15rem; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem;
  margin: 1.5rem 0; }
.card { background: var(--tint); border-radius: 10px; padding: .9rem 1.1rem; }
.card.main { background: var(--mark); color: #fff; }
.card b { display: block; font-size: 1.9rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem 1.4rem .45rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; white-space: normal; }
tr.main > * { font-weight: 700; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.6rem; }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .8rem; align-items: start;
  margin: 0 0 1.6rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr));
  gap: 1.6rem; align-items: start; }
.pair { display: grid; grid-template-columns: repeat(2, 1fr); gap: .8rem; align-items: start;
  margin: 0 0 1.6rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
.pictures img, .pair img { width: auto; max-width: 100%; }
h3, figcaption { overflow-wrap: anywhere; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .3rem; }
figcaption b { color: var(--ink); }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .35em; background: currentColor; }
.key { margin-right: 1.1em; white-space: nowrap; }
.key span { color: var(--ink); }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: 8px; }
summary { cursor: pointer; padding: .5rem .9rem; }
pre { background: var(--tint); border-radius: 8px; padding: .8rem 1rem; margin: .4rem 0 1rem;
  overflow-x: auto; font-size: .84rem; line-height: 1.45; }
details pre { margin: 0; border-radius: 0 0 8px 8px; }
details p { padding: 0 .9rem; }
details .scroll { padding: 0 .9rem; }
.tag { border-radius: 99px; padding: .1rem .6rem; margin-left: .5rem; font-size: .82rem;
  background: var(--tint); color: var(--soft); white-space: nowrap; }
.tag.strong { background: #b3261e; color: #fff; }
.tag.medium { background: #ffe3b3; color: #5c3a00; }
@media (max-width: 640px) {
  main { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; }
  .row { grid-template-columns: 1fr; }
  .row figure { max-width: 22rem; }
  th, td { padding-right: .8rem; font-size: .92rem; }
}
"""

_PAGE = Markup(
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    # The browser itself then refuses scripts and anything that is not in this file.
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
    "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
    "<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
)


def page(title: str, body: Iterable[Markup]) -> str:
    """A whole HTML document."""
    return str(_PAGE.format(title=title, style=Markup(STYLE), body=join(body, "\n")))


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Blocks one after the other."""
    return Markup(separator).join(parts)


def section(title: str, *blocks: Markup) -> Markup:
    """A heading and what belongs to it."""
    return Markup("<section>\n<h2>{}</h2>\n{}\n</section>").format(title, join(blocks, "\n"))


def heading(text: str) -> Markup:
    """A heading inside a section."""
    return Markup("<h3>{}</h3>").format(text)


def paragraph(text: str, css_class: str = "") -> Markup:
    """A paragraph; `css_class` may be "lead"."""
    return Markup('<p class="{}">{}</p>').format(css_class, text)


def card(caption: str, value: str, main: bool = False) -> Markup:
    """A number in large letters with what it is."""
    return Markup('<div class="card{}"><b>{}</b>{}</div>').format(
        " main" if main else "", value, caption
    )


def group(css_class: str, blocks: Iterable[Markup]) -> Markup:
    """Blocks side by side.

    Args:
        css_class: "cards", "grid" (as many as fit, all of a width), "row" (three), "pictures" (as
            many as fit, none larger than it is) or "pair" (two, none larger than it is).
        blocks: what to show.
    """
    return Markup('<div class="{}">\n{}\n</div>').format(css_class, join(blocks, "\n"))


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], main_row: int | None = None
) -> Markup:
    """A table whose first column names the rows; row `main_row` stands out."""
    head = join(Markup('<th scope="col">{}</th>').format(x) for x in header)
    body = join(
        Markup('<tr class="{}"><th scope="row">{}</th>{}</tr>\n').format(
            "main" if number == main_row else "",
            first,
            join(Markup("<td>{}</td>").format(x) for x in rest),
        )
        for number, (first, *rest) in enumerate(rows)
    )
    return Markup(
        '<div class="scroll"><table>\n<thead><tr>{}</tr></thead>\n'
        "<tbody>\n{}</tbody>\n</table></div>"
    ).format(head, body)


def figure(image: bytes, title: str, caption: str = "", alt: str = "") -> Markup:
    """A picture, PNG or JPEG, with a bold title and a caption below it."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return Markup(
        '<figure><img src="data:image/{};base64,{}" alt="{}">'
        "<figcaption><b>{}</b> {}</figcaption></figure>"
    ).format(kind, base64.b64encode(image).decode(), alt or title, title, caption)


def color_key(meanings: dict[str, tuple[float, float, float]]) -> Markup:
    """What colors mean: text -> RGB in 0-1."""
    entries = []
    for text, color in meanings.items():
        red, green, blue = (round(255 * x) for x in color)
        entries.append(
            Markup(
                '<span class="key" style="color: rgb({}, {}, {})"><span>{}</span></span>'
            ).format(red, green, blue, text)
        )
    return Markup("<p>{}</p>").format(join(entries, " "))


def code(text: str) -> Markup:
    """Text as typed."""
    return Markup("<pre>{}</pre>").format(text)


def tag(text: str, weight: str = "") -> Markup:
    """A short word that stands out behind a text; `weight` may be "medium" or "strong"."""
    return Markup('<span class="tag {}">{}</span>').format(weight, text)


def folded(title: str, *blocks: Markup, opened: bool = False) -> Markup:
    """Content that shows after a click on its title, or hides if it is `opened`."""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(
        " open" if opened else "", title, join(blocks)
    )
