"""The frame of the report: layout and colours; nothing is loaded from elsewhere."""

PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>@TITLE@</title><style>
:root{--ink:#1d2733;--muted:#6b7785;--line:#e3e8ed;--good:#0f8b8d;--bad:#d1495b;--paper:#fff;--ground:#f5f7f9}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
  sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:34px;line-height:1.15;margin:.1em 0 .2em;letter-spacing:-.02em}
h2{font-size:19px;margin:0 0 12px}
h3{font-size:14px;margin:18px 0 8px;color:var(--muted);font-weight:600}
.eyebrow{margin:0;color:var(--good);font-weight:600;font-size:13px;letter-spacing:.04em}
.sub,.note,.dim{color:var(--muted)}
.sub{margin:0 0 24px}
.note{font-size:13.5px}
.dim{font-size:.9em}
.good{color:var(--good)}
.bad{color:var(--bad)}
section,details{margin:0 0 24px}section:not(.cards):not(.plots),main>details{background:var(--paper);
  border:1px solid var(--line);border-radius:12px;padding:22px 24px}
.cards{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(245px,1fr));margin-bottom:12px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:18px 20px}
.card h2{font-size:15px;margin:0;color:var(--muted);font-weight:600}
.big{font-size:56px;line-height:1;font-weight:700;letter-spacing:-.03em;margin:8px 0 4px}
.big small{font-size:26px;margin-left:3px}
.card table{font-size:13px}
.card p.dim{margin:0 0 10px}
.bar{position:relative;height:8px;border-radius:4px;background:#edf0f3;margin:0 0 14px}
.bar i{position:absolute;top:0;bottom:0;border-radius:4px;background:var(--good);opacity:.35}
.bar b{position:absolute;top:-3px;width:3px;height:14px;margin-left:-1px;border-radius:2px;background:var(--good)}
table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:500}
.card th{color:var(--muted);padding:3px 0;white-space:nowrap}
.card td{text-align:right;white-space:nowrap;padding:3px 0;font-variant-numeric:tabular-nums}
.plots{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(320px,1fr))}
figure{margin:0}
.plot{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:16px}
.plot figcaption{font-weight:600;margin-bottom:6px}
.plot svg{width:100%;height:auto;display:block}
.wide .plot{border:0;padding:0}
.wide svg{max-width:1000px;margin:0 auto}
.one svg{max-width:460px;margin:0}
.grid th,.grid td{padding:6px 10px;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums;
  text-align:left}
.grid tbody th{white-space:nowrap}
.grid thead th{color:var(--muted);font-size:13px}
.scroll{max-height:520px;overflow:auto;margin-top:12px}
.videos{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(220px,1fr))}
.videos video{width:100%;display:block;border-radius:8px;background:#fff;border:1px solid var(--line);
  border-top:4px solid var(--good)}
.videos .bad video{border-top-color:var(--bad)}
.videos figure.bad,.videos figure.good{color:inherit}
figcaption{font-size:13.5px;margin-top:6px}
summary{cursor:pointer;font-weight:600}
pre{background:#f3f5f7;border-radius:8px;padding:12px 14px;overflow:auto;font-size:13px;white-space:pre-wrap;
  word-break:break-word}
code{background:#f3f5f7;border-radius:4px;padding:1px 5px;font-size:13px}
.columns{display:grid;gap:32px;grid-template-columns:repeat(auto-fit,minmax(320px,1fr))}
.facts th{color:var(--muted);padding:3px 12px 3px 0;vertical-align:top;white-space:nowrap}
.facts td{padding:3px 0;word-break:break-all;font-size:13.5px}
@media print{body{background:#fff}details{display:none}}
</style></head><body><main>
@BODY@
</main></body></html>
"""
