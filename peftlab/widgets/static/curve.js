// A small live chart: curves that grow while a model trains, and baselines as dashed lines.
// The trait `series` is the truth; "add" messages are the fast path, one per few points.
const COLOURS = ["#2f7ed8", "#d9534f", "#2aa876", "#9467bd", "#e08a1e", "#17a2b8", "#b05f8a", "#7f8c2a"];
const LEFT = 44, TOP = 8, BOTTOM = 34;

const escape = t => String(t).replace(/[&<>"]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}[c]));
const short = v => Math.abs(v) >= 1000 ? String(Math.round(v)) : String(+v.toPrecision(3));

function ticks(low, high, n) {                       // round numbers that cover [low, high]
  const raw = (high - low) / n || 1, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(k => k * unit).find(s => s >= raw), out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) out.push(+v.toPrecision(10));
  return out;
}

function apart(labels, gap, high) {             // push labels that would overlap away from one another
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + gap);
  if (labels.length) labels[labels.length - 1].y = Math.min(labels[labels.length - 1].y, high);
  for (let i = labels.length - 2; i >= 0; i--) labels[i].y = Math.min(labels[i].y, labels[i + 1].y - gap);
  return labels;
}

function render({model, el}) {
  const root = document.createElement("div");
  root.className = "pl-live";
  root.innerHTML = '<div class="pl-title"></div><div class="pl-plot"></div><div class="pl-legend" role="group" aria-label="runs shown"></div>';
  el.appendChild(root);
  const [title, plot, legend] = root.children, hidden = new Set();
  let series = [], asked = false, hover = null, box = null;
  const read = () => { series = structuredClone(model.get("series") || []); };

  function draw() {
    asked = false;
    const wide = Math.max(220, plot.clientWidth || 420), high = model.get("height"), lines = model.get("lines") || [];
    const right = lines.length ? 116 : 12, name = model.get("title");
    const shown = series.filter((s, i) => !hidden.has(i)), points = shown.flatMap(s => s.points);
    let x1 = Math.max(model.get("xmax") || 0, 1), y0 = Infinity, y1 = -Infinity;
    points.forEach(([x, y, low, high]) => { x1 = Math.max(x1, x); y0 = Math.min(y0, low ?? y); y1 = Math.max(y1, high ?? y); });
    lines.forEach(l => { y0 = Math.min(y0, l.low ?? l.value); y1 = Math.max(y1, l.high ?? l.value); });
    if (y0 === Infinity) { y0 = 0; y1 = 1; }
    const pad = (y1 - y0) * 0.06 || 0.05;
    y0 -= pad; y1 += pad;
    const X = x => LEFT + (wide - LEFT - right) * x / x1, Y = y => high - BOTTOM - (high - BOTTOM - TOP) * (y - y0) / (y1 - y0);
    box = {X, x1, wide, right};
    const last = shown.filter(s => s.points.length).map(s => `${s.name} ${short(s.points.at(-1)[1])}`).join(", ");
    let h = `<svg width="${wide}" height="${high}" role="img" aria-label="${escape(name)}: ${escape(last || "nothing run yet")}" data-n="${series.map(s => s.points.length).join(",")}">`;
    ticks(y0, y1, 4).forEach(v => h += `<line class="pl-rule" x1="${LEFT}" x2="${wide - right}" y1="${Y(v)}" y2="${Y(v)}"/><text x="${LEFT - 6}" y="${Y(v) + 4}" text-anchor="end">${short(v)}</text>`);
    ticks(0, x1, 4).forEach(v => h += `<text x="${X(v)}" y="${high - BOTTOM + 15}" text-anchor="middle">${short(v)}</text>`);
    h += `<text x="${(LEFT + wide - right) / 2}" y="${high - 4}" text-anchor="middle">${escape(model.get("xlabel"))}</text>`;
    lines.forEach(l => {
      if (l.low != null) h += `<rect class="pl-band" x="${LEFT}" width="${wide - right - LEFT}" y="${Y(l.high)}" height="${Math.max(1, Y(l.low) - Y(l.high))}"/>`;
      h += `<line class="pl-base" x1="${LEFT}" x2="${wide - right}" y1="${Y(l.value)}" y2="${Y(l.value)}"><title>${escape(l.note || l.name)}</title></line>`;
    });
    apart(lines.map(l => ({y: Y(l.value) + 4, l})), 13, high - BOTTOM).forEach(({y, l}) =>
      h += `<text class="pl-name" x="${wide - right + 5}" y="${y}">${escape(l.name)} ${short(l.value)}<title>${escape(l.note || l.name)}</title></text>`);
    series.forEach((s, i) => {
      if (hidden.has(i) || !s.points.length) return;
      const c = COLOURS[i % COLOURS.length], [x, y] = s.points.at(-1), at = (p, y) => X(p[0]).toFixed(1) + "," + Y(y).toFixed(1);
      const seeds = s.points.filter(p => p.length > 2);   // [x, mean, least, most]
      if (seeds.length) h += `<polygon class="pl-seeds" fill="${c}" points="${[...seeds.map(p => at(p, p[3])), ...seeds.toReversed().map(p => at(p, p[2]))].join(" ")}"/>`;
      h += `<polyline fill="none" stroke="${c}" stroke-width="${i === series.length - 1 ? 2.2 : 1.3}" stroke-linejoin="round" points="${s.points.map(p => at(p, p[1])).join(" ")}"/><circle cx="${X(x)}" cy="${Y(y)}" r="3" fill="${c}"/>`;
    });
    if (!series.length) h += `<text class="pl-name" x="${(LEFT + wide - right) / 2}" y="${TOP + (high - BOTTOM) / 3}" text-anchor="middle">${escape(model.get("empty"))}</text>`;
    if (hover != null) h += `<line class="pl-rule" x1="${X(hover)}" x2="${X(hover)}" y1="${TOP}" y2="${high - BOTTOM}"/>`;
    plot.innerHTML = h + "</svg>";
    title.textContent = name;
    title.append(hover == null ? "" : ` · ${model.get("xlabel")} ${short(hover)}: ` + shown.map(s => near(s.points, hover)).filter(v => v != null).map(short).join(", "));
    keys();
  }

  const near = (points, x) => {                      // value of the point nearest to x
    let best = null;
    points.forEach(p => { if (!best || Math.abs(p[0] - x) < Math.abs(best[0] - x)) best = p; });
    return best && best[1];
  };

  function keys() {                                  // the legend: a button per run, pressed = shown
    if (legend.children.length !== series.length) {
      legend.replaceChildren(...series.map((s, i) => {
        const b = document.createElement("button");
        b.onclick = () => { hidden.has(i) ? hidden.delete(i) : hidden.add(i); ask(); };
        return b;
      }));
    }
    series.forEach((s, i) => {
      const b = legend.children[i], on = !hidden.has(i);
      if (b.title !== s.name) { b.title = s.name; b.innerHTML = `<i style="background:${COLOURS[i % COLOURS.length]}"></i>${escape(s.name)}`; }
      b.setAttribute("aria-pressed", on);
    });
  }

  const ask = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
  const again = () => { read(); if (series.length < hidden.size) hidden.clear(); ask(); };
  const message = m => {
    if (m.kind !== "add") return;
    m.pts.forEach(([i, x, y]) => { if (series[i]) series[i].points.push([x, y]); });
    ask();
  };
  plot.onpointermove = e => {
    const x = (e.clientX - plot.getBoundingClientRect().left - LEFT) / (box.wide - LEFT - box.right) * box.x1;
    hover = x < 0 || x > box.x1 ? null : Math.round(x);
    ask();
  };
  plot.onpointerleave = () => { hover = null; ask(); };
  const size = new ResizeObserver(ask);
  size.observe(plot);
  const parts = ["lines", "title", "height", "xmax", "xlabel", "empty"];
  model.on("msg:custom", message);
  model.on("change:series", again);
  parts.forEach(p => model.on("change:" + p, ask));
  read();
  draw();
  return () => {                                     // cells are rerun often: leave nothing behind
    size.disconnect();
    model.off("msg:custom", message);
    model.off("change:series", again);
    parts.forEach(p => model.off("change:" + p, ask));
  };
}
export default {render};
