"""How the page of a run looks: in light and dark, on a desk and on a phone."""

_COLOURS = {  # by the number of a curve: in light, in dark
    0: ("#2f5fb3", "#8ab4ff"),
    1: ("#c2571a", "#f2a266"),
    **{10 + n: (f"hsl({(215 + 24 * n) % 360} 62% 42%)", f"hsl({(215 + 24 * n) % 360} 70% 70%)") for n in range(8)},
}
_LIGHT = "".join(f"--c{n}:{light};" for n, (light, _) in _COLOURS.items())
_DARK = "".join(f"--c{n}:{dark};" for n, (_, dark) in _COLOURS.items())
_CURVES = "".join(
    f"path.line.c{n}{{stroke:var(--c{n})}}path.band.c{n},circle.c{n}{{fill:var(--c{n})}}.k.c{n} b{{color:var(--c{n})}}"
    for n in _COLOURS
)

STYLE = f"""
:root{{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d1e20;--soft:#6a6c72;--rule:#e3e1dc;
--good:#2c7a4b;--poor:#b3261e;{_LIGHT}}}
@media(prefers-color-scheme:dark){{:root{{--paper:#141518;--card:#1c1e22;--ink:#e8e6e3;--soft:#9a9da5;--rule:#303339;
--good:#7fd1a0;--poor:#ff9a92;{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}}
main{{max-width:1160px;margin:0 auto;padding:24px 16px 64px}}
h1{{font-size:1.9rem;font-weight:650;letter-spacing:-.02em;margin:0;overflow-wrap:anywhere}}
h2{{font-size:1.15rem;font-weight:620;margin:0 0 12px;display:inline-block}}
header p{{margin:2px 0 0;color:var(--soft)}}
section{{margin-top:36px}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fill,minmax(130px,1fr));gap:10px;margin:0 0 16px}}
.tiles div,figure{{background:var(--card);border:1px solid var(--rule);border-radius:10px}}
.tiles div{{padding:10px 12px;overflow-wrap:anywhere}}
dt{{color:var(--soft);font-size:.8rem}}
dd{{margin:0;font-size:1.05rem;font-weight:600;font-variant-numeric:tabular-nums}}
.charts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:12px;margin-top:12px}}
figure{{margin:0;padding:12px;min-width:0}}
figcaption{{color:var(--soft);font-size:.85rem}}
figcaption strong{{color:var(--ink);font-weight:600;margin-right:6px}}
.k{{white-space:nowrap;margin-right:6px}}.k b{{font-weight:600;font-variant-numeric:tabular-nums}}
svg{{display:block;width:100%;height:auto;margin-top:6px}}
svg text{{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}}
path.g{{stroke:var(--rule);stroke-width:1}}
path.line{{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}}
path.band{{opacity:.16}}
{_CURVES}
.pictures{{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,1fr);gap:12px}}
.pictures>div{{display:grid;gap:12px;align-content:start}}.pictures>div:empty{{display:none}}
@media(max-width:720px){{.pictures{{grid-template-columns:1fr}}.pictures>div{{grid-template-columns:1fr 1fr}}}}
img{{display:block;max-width:100%;height:auto;border-radius:6px;image-rendering:auto}}
.pictures>figure>img{{width:100%}}
figcaption small{{display:block;margin-top:4px;overflow-wrap:anywhere}}
.findings{{list-style:none;padding:0;margin:0 0 12px}}
.findings li{{padding:2px 0}}.findings li::before{{display:inline-block;width:3.2em;font-weight:600}}
.good::before{{content:"good";color:var(--good)}}.poor::before{{content:"poor";color:var(--poor)}}
details>summary{{cursor:pointer;color:var(--soft);margin-top:12px}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;width:100%;font-size:.88rem}}
th,td{{text-align:left;vertical-align:top;padding:5px 12px 5px 0;border-top:1px solid var(--rule)}}
th{{font-weight:500;color:var(--soft);white-space:nowrap}}td{{overflow-wrap:anywhere;font-variant-numeric:tabular-nums}}
"""
