// A table of shares as colours. A cell or row that can be opened is a button; the answer comes from Python.
function render({model, el}) {
  const root = document.createElement("div");
  root.className = "pl-heat";
  el.appendChild(root);
  const share = v => v == null ? "–" : v === 0 ? "0" : v < 0.0005 ? v.toExponential(1) : +(100 * v).toPrecision(3) + " %";
  const colour = v => v == null ? "transparent" : v === 0 ? "var(--jp-layout-color2, #eee)"
    : `color-mix(in srgb, var(--jp-brand-color1, #1976d2) ${Math.round(18 + 82 * Math.sqrt(v))}%, var(--jp-layout-color2, #eee))`;
  const go = path => { model.set("path", path); model.save_changes(); };

  function draw() {
    const {title, rows, columns, values, opens, notes} = model.get("view"), path = model.get("path");
    root.replaceChildren();
    const head = document.createElement("div");
    head.className = "pl-heat-title";
    if (path.length) {
      const back = document.createElement("button");
      back.textContent = "← back";
      back.className = "pl-back";
      back.onclick = () => go(model.get("path").slice(0, -1));  // not the drawn one: Python may be slower than two clicks
      head.append(back, " ");
    }
    head.append(title || "");
    root.append(head);
    const table = document.createElement("div");
    table.className = "pl-heat-table";
    table.setAttribute("role", "table");
    table.setAttribute("aria-label", title || "");
    const named = columns.some(Boolean), fine = !named && values.length && values[0].length > 24;
    table.style.gridTemplateColumns = `${rows.some(Boolean) ? "minmax(72px, auto)" : "0"} repeat(${Math.max(1, values[0]?.length || 0)}, ${fine ? "7px" : "minmax(34px, 52px)"})`;
    table.classList.toggle("pl-fine", fine);
    const put = (tag, text, cls) => { const e = document.createElement(tag); e.textContent = text; e.className = cls; table.append(e); return e; };
    if (named) { put("span", "", ""); columns.forEach(c => put("span", c, "pl-col")); }
    values.forEach((line, i) => {
      const name = put(opens === "row" ? "button" : "span", rows[i] || "", "pl-row");
      if (opens === "row") name.onclick = () => go([...path, rows[i]]);
      line.forEach((v, j) => {
        const open = opens === "row" && v != null, c = put(open ? "button" : "span", "", "pl-share");
        const where = [rows[i], columns[j]].filter(Boolean).join(", ") + (notes ? " " + notes : "");
        c.style.background = colour(v);
        c.title = `${where}: ${share(v)}`;
        if (!fine) c.setAttribute("aria-label", c.title);
        if (open) c.onclick = () => go([...path, rows[i]]);
      });
    });
    root.append(table);
  }
  model.on("change:view", draw);
  draw();
  return () => model.off("change:view", draw);
}
export default {render};
