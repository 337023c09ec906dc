"""The page's style: one set of colours for light, one for dark, nothing loaded from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --quiet: #5d6878; --edge: #dfe4ea;
  --grid: #e9edf1; --accent: #1f5fbf; --on-accent: #ffffff; --warn: #9a5b00; --warn-card: #fff6e5;
  --good: #1a7f4b; --bad: #b3372f; --bar: #cfdff5;
  --c0: #1f5fbf; --c1: #d9690f; --c2: #128a80; --c3: #a13d9a; --c4: #77801a; --c5: #64748b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141a; --card: #181e26; --ink: #e5eaf0; --quiet: #97a3b3; --edge: #2c3540;
    --grid: #262e38; --accent: #74a9ff; --on-accent: #0c1420; --warn: #f0b95a;
    --warn-card: #2a2214; --good: #58c98d; --bad: #f2857d; --bar: #2c4668;
    --c0: #74a9ff; --c1: #ff9f52; --c2: #4fcabd; --c3: #e08ad9; --c4: #c3cc5a; --c5: #9fb0c4;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans",
    "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  font-variant-numeric: tabular-nums;
}
header, main, footer { max-width: 968px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 44px; }
.over { margin: 0; color: var(--quiet); font-size: 13px; letter-spacing: .04em;
  overflow-wrap: anywhere; }
h1 { margin: 2px 0 18px; font-size: 30px; line-height: 1.2; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
.headline { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 18px; }
.headline strong { font-size: 68px; line-height: 1; font-weight: 680; letter-spacing: -.035em;
  color: var(--accent); }
.headline strong.none { font-size: 34px; }
.headline span { max-width: 560px; color: var(--quiet); }
.headline b { color: var(--ink); font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 26px 0 0; padding: 10px 0;
  border-top: 1px solid var(--edge); font-size: 14px; }
nav a { color: var(--quiet); text-decoration: none; }
nav a:hover { color: var(--accent); text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(134px, 1fr)); gap: 12px;
  margin: 22px 0 0; }
.tile, section, .notes { background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; }
.tile { padding: 12px 16px 13px; }
.tile b { display: block; font-size: 23px; line-height: 1.25; font-weight: 620;
  letter-spacing: -.01em; white-space: nowrap; }
.tile span { display: block; color: var(--quiet); font-size: 13px; line-height: 1.4; }
.tile.warn b { color: var(--warn); }
section { margin: 20px 0; padding: 22px 24px 24px; }
h2 { margin: 0 0 4px; font-size: 19px; letter-spacing: -.01em; }
h3 { margin: 26px 0 8px; font-size: 15px; font-weight: 620; }
h4 { margin: 18px 0 0; font-size: 14px; font-weight: 500; color: var(--quiet); }
p { margin: 0 0 12px; }
.caption { color: var(--quiet); max-width: 720px; font-size: 14px; }
.absent { color: var(--quiet); margin: 10px 0 0; padding: 12px 14px; font-size: 14px;
  border: 1px dashed var(--edge); border-radius: 8px; }
.notes { margin: 20px 0; padding: 12px 20px; background: var(--warn-card); color: var(--warn);
  font-size: 14px; overflow-wrap: anywhere; }
.notes ul { margin: 4px 0; padding-left: 20px; }
.figure { margin: 14px 0; }
.figure svg { display: block; max-width: 100%; height: auto; }
.panels { display: flex; flex-wrap: wrap; gap: 18px 36px; margin: 12px 0 6px; }
.panels svg { display: block; max-width: 100%; height: auto; }
.beside { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 8px 36px; }
.beside .table { flex: 1 1 260px; margin-top: 26px; }
.beside td, .beside th { padding-right: 12px; }
.beside td:last-child, .beside th:last-child { padding-right: 0; }
.beside td.name { min-width: 80px; }
.narrow { display: none; }
.key { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 10px 0 2px; padding: 0;
  list-style: none; font-size: 13px; color: var(--quiet); }
.key i { display: inline-block; width: 18px; margin-right: 7px; border-top: 3px solid var(--c);
  vertical-align: middle; }
.key i.dashed { border-top-style: dashed; border-top-width: 2px; }
.table { overflow-x: auto; margin: 12px 0 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 14px 7px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--edge); unicode-bidi: isolate; }
th { color: var(--quiet); font-weight: 500; font-size: 13px; white-space: nowrap; }
tr:last-child > td { border-bottom: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
td.wrap { overflow-wrap: anywhere; min-width: 200px; }
td.name { min-width: 140px; overflow-wrap: anywhere; }
tr.total td, tr.last td { font-weight: 620; }
tr.last td.quiet { font-weight: 400; }
td.quiet, .quiet { color: var(--quiet); font-weight: 400; }
td.step { white-space: nowrap; }
td.bar { width: 26%; min-width: 90px; vertical-align: middle; }
td.bar i { display: block; height: 9px; min-width: 1px; border-radius: 2px;
  background: var(--c0); }
.up { color: var(--good); } .down { color: var(--bad); }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr));
  gap: 16px; margin: 12px 0 6px; }
.clip { min-width: 0; padding: 14px 16px; border: 1px solid var(--edge); border-radius: 8px; }
.clip h4 { margin: 0; color: var(--ink); font-weight: 620; overflow-wrap: anywhere; }
.clip p { margin: 2px 0 10px; font-size: 14px; overflow-wrap: anywhere; }
.clip p.quiet { margin-bottom: 0; font-size: 13px; }
.clip img { display: block; height: auto; border-radius: 6px; }
.clip audio { display: block; width: 100%; height: 40px; margin: 10px 0 0; }
.clip blockquote { margin: 10px 0 6px; padding-left: 12px; border-left: 3px solid var(--edge);
  max-height: 7.8em; overflow-y: auto; overflow-wrap: anywhere; }
.clip th, .clip td { padding: 3px 5px; font-size: 13px; border: 0; }
.clip th .quiet { font-size: 11px; }
.clip tbody th, .clip td { vertical-align: middle; }
.clip tbody th { padding: 3px 0; color: var(--ink); white-space: normal; overflow-wrap: anywhere; }
.clip thead th { padding: 3px 0; font-size: 12px; white-space: normal; overflow-wrap: anywhere; }
.clip thead th, .clip td { text-align: right; }
.clip td.p { background: linear-gradient(to right, var(--bar) var(--p), var(--page) 0); }
.clip table { table-layout: fixed; border-collapse: separate; border-spacing: 3px 1px; }
.clip thead th:first-child { width: 31%; }
.kind > summary { padding: 4px 0; }
details { margin: 14px 0 0; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
pre { margin: 10px 0 0; padding: 14px 16px; overflow-x: auto; background: var(--page);
  border: 1px solid var(--edge); border-radius: 8px;
  font: 12.5px/1.5 ui-monospace, "SF Mono", "DejaVu Sans Mono", "Noto Sans Mono CJK SC",
    monospace; }
footer { padding-bottom: 44px; color: var(--quiet); font-size: 13px; }
svg { font-family: inherit; }
svg text { fill: var(--ink); font-size: 13px; }
svg .tick { fill: var(--quiet); font-size: 11.5px; }
svg .tiny { font-size: 9.5px; }
svg .strong { font-weight: 650; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; opacity: .7; }
svg .interval { stroke: var(--c); stroke-width: 2.5; stroke-linecap: round; opacity: .45; }
svg .dot { fill: var(--c); stroke: var(--card); stroke-width: 1; }
svg .bar { fill: var(--c); }
svg .curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .dashed .curve { stroke-dasharray: 5 4; stroke-width: 1.6; }
svg .faint .curve { stroke-width: 1; opacity: .28; }
svg g:hover > .curve { stroke-width: 3; opacity: 1; }
svg .empty { fill: var(--grid); opacity: .55; }
svg .heat { fill: var(--accent); }
svg .cell { font-weight: 620; font-size: 14px; }
svg .cell.count { font-weight: 400; font-size: 11px; opacity: .8; }
svg .cell.small { font-size: 11px; }
svg .cell.count.small { font-size: 9px; }
svg .cell.on { fill: var(--on-accent); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
@media (max-width: 760px) {
  header, main, footer { padding-left: 14px; padding-right: 14px; }
  header { padding-top: 26px; }
  h1 { font-size: 24px; }
  .headline strong { font-size: 54px; }
  section { padding: 18px 16px 20px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .wide { display: none; }
  .narrow { display: block; }
}
@media print {
  body { background: #fff; } nav { display: none; }
  section { break-inside: avoid; border: 0; padding-left: 0; }
}
"""
