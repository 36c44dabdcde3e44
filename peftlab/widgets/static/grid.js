// Layers x sites as buttons: a cell toggles itself, a header toggles its row or column, arrow keys move.
function render({model, el}) {
  const box = document.createElement("div");
  box.className = "pl-mask";
  box.setAttribute("role", "grid");
  el.appendChild(box);
  let cells = [];
  const copy = () => model.get("mask").map(row => row.slice());
  const put = mask => { model.set("mask", mask); model.save_changes(); };

  function toggle(change) {
    if (model.get("disabled")) return;
    const mask = copy();
    change(mask);
    put(mask);
  }
  const row = i => toggle(m => { const on = m[i].every(Boolean); m[i] = m[i].map(() => on ? 0 : 1); });
  const column = j => toggle(m => { const on = m.every(r => r[j]); m.forEach(r => { r[j] = on ? 0 : 1; }); });
  const all = () => toggle(m => { const on = m.flat().every(Boolean); m.forEach(r => r.fill(on ? 0 : 1)); });

  function button(parent, text, label, act, i, j) {
    const b = document.createElement("button");
    b.textContent = text;
    b.title = label;
    b.tabIndex = i < 0 && j < 0 ? 0 : -1;            // one stop for Tab; arrows move inside
    b.dataset.i = i;
    b.dataset.j = j;
    b.setAttribute("aria-label", label);
    b.onclick = act;
    const holder = document.createElement("div");
    holder.setAttribute("role", i < 0 ? "columnheader" : j < 0 ? "rowheader" : "gridcell");
    holder.appendChild(b);
    parent.appendChild(holder);
    return b;
  }

  function build() {
    const layers = model.get("layers"), sites = model.get("sites");
    box.replaceChildren();
    box.setAttribute("aria-label", model.get("label"));
    box.style.setProperty("--pl-columns", sites.length);
    cells = [];
    const line = () => { const d = document.createElement("div"); d.setAttribute("role", "row"); box.appendChild(d); return d; };
    const top = line();
    button(top, "all", "all layers and sites", all, -1, -1).className = "pl-head";
    sites.forEach((s, j) => { button(top, s, `site ${s} in all layers`, () => column(j), -1, j).className = "pl-head"; });
    layers.forEach((l, i) => {
      const r = line();
      button(r, l, `${l}, all sites`, () => row(i), i, -1).className = "pl-head";
      sites.forEach((s, j) => cells.push({b: button(r, "", `${l}, site ${s}`, () => toggle(m => { m[i][j] = m[i][j] ? 0 : 1; }), i, j), i, j}));
    });
    paint();
  }

  function paint() {
    const mask = model.get("mask"), off = model.get("disabled");
    cells.forEach(({b, i, j}) => {
      const on = Boolean(mask[i] && mask[i][j]);
      b.className = on ? "pl-cell pl-on" : "pl-cell";
      b.setAttribute("aria-pressed", on);
    });
    box.setAttribute("aria-disabled", off);
  }

  box.onkeydown = e => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key];
    if (!step || e.target.dataset.i === undefined) return;
    const next = box.querySelector(`button[data-i="${+e.target.dataset.i + step[0]}"][data-j="${+e.target.dataset.j + step[1]}"]`);
    e.preventDefault();
    e.stopPropagation();                             // else the notebook moves to another cell
    if (!next) return;
    e.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  return follow(model, build, ["layers", "sites", "label"], paint, ["mask", "disabled"]);
}
export default {render};
