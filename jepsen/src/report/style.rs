//! How the page looks, by day and by night.
//!
//! Deliberately absent: fonts and images. A reader's own will do.

/// Put into the page as it stands.
pub(super) const STYLE: &str = "\
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --quiet: #59636e; --line: #d1d9e0;
  --good: #1a7f37; --bad: #cf222e; --unsure: #8a5a00; --bar: #4c78a8; --shade: #8899aa33; --named: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1318; --text: #e6edf3; --quiet: #9aa7b4; --line: #343d47;
    --good: #4cc266; --bad: #ff7b72; --unsure: #e3b341; --bar: #79a8d8; --shade: #8899aa33; --named: #4a3d10; }
}
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.wide { width: 30rem; }
.note { color: var(--quiet); font-size: .9rem; }
.verdict { border: 2px solid currentColor; padding: .6rem 1rem; font-size: 1.15rem; }
.pass { color: var(--good); } .broken { color: var(--bad); } .unknown { color: var(--unsure); }
.bar { display: inline-block; height: .8rem; background: var(--bar); }
.operations { display: block; overflow-x: auto; font: 12px/1.4 ui-monospace, monospace; }
.operations .named td { background: var(--named); font-weight: 600; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--text); } svg .name { text-anchor: end; } svg .time { text-anchor: middle; fill: var(--quiet); }
svg .frame { fill: none; stroke: var(--line); } svg .tick { stroke: var(--line); stroke-width: .5; fill: none; }
svg .fault { fill: var(--bar); } svg .shade { fill: var(--shade); } svg .what { fill: var(--page); }
svg .ok { fill: var(--good); } svg .fail { fill: var(--bad); } svg .info { fill: var(--unsure); }
svg .line { fill: none; stroke: var(--text); stroke-width: 1.3; }
svg .p99 { stroke-dasharray: 5 3; } svg .max { stroke-dasharray: 1 3; }
";
