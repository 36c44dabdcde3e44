// Groups of layers x methods: a cell is a block with what it trains, the lowest layers below; under each method the
// slider of its size, above all what is spent of the budget. Python takes back what would be too much, and says why.
function render({model, el}) {
  const box = document.createElement("div");
  box.className = "pl-blocks";
  box.innerHTML = '<div class="pl-spent"></div><div class="pl-purse" role="meter" aria-label="numbers spent"></div>' +
    '<div class="pl-scroll"><table role="grid" aria-label="methods in groups of layers"></table></div><div class="pl-refused" role="alert"></div>';
  el.appendChild(box);
  const spent = box.querySelector(".pl-spent"), purse = box.querySelector(".pl-purse"), table = box.querySelector("table"), refused = box.querySelector(".pl-refused");
  const said = n => n.toLocaleString("en-US"), made = (tag, name = "") => Object.assign(document.createElement(tag), {className: name});
  const put = (what, value) => { model.set(what, value); model.save_changes(); };
  const ticked = (g, n) => model.get("ticks").some(t => t[0] === g && t[1] === n);
  let cells = [], sliders = [];

  function toggle(g, n) {
    const ticks = model.get("ticks");
    put("ticks", ticked(g, n) ? ticks.filter(t => t[0] !== g || t[1] !== n) : [...ticks, [g, n]]);
  }

  function slider(m) {
    const label = made("label", "pl-size"), words = made("span");
    label.append(words);
    if (!m.knob) { words.textContent = "one size"; return label; }
    const input = made("input", `pl-size-${m.name}`);
    Object.assign(input, {type: "range", min: 0, max: m.scale.length - 1, step: 1});
    input.style.accentColor = m.colour;
    input.setAttribute("aria-label", `${m.name}, ${m.knob}`);
    input.oninput = () => put("sizes", {...model.get("sizes"), [m.name]: m.scale[+input.value]});
    label.append(input);
    sliders.push({m, input, words});
    return label;
  }

  function build() {
    const methods = model.get("methods"), groups = model.get("groups");
    const head = made("tr"), foot = made("tr"), busy = document.activeElement && box.contains(document.activeElement) ? document.activeElement.dataset.at : null;
    cells = []; sliders = [];
    head.append(made("td"));
    foot.append(made("td"));
    methods.forEach(m => {
      const th = made("th"), td = made("td");
      th.scope = "col";
      th.textContent = m.name;
      th.title = m.title;
      th.style.borderBottomColor = m.colour;
      td.append(slider(m));
      head.append(th);
      foot.append(td);
    });
    const lines = groups.map((label, g) => {
      const line = made("tr"), th = made("th");
      th.scope = "row";
      th.textContent = label;
      line.append(th);
      methods.forEach((m, j) => {
        const td = made("td"), b = made("button");
        b.style.setProperty("--pl-colour", m.colour);
        b.onclick = () => toggle(g, m.name);
        b.dataset.at = `${g} ${j}`;
        b.tabIndex = cells.length ? -1 : 0;          // one stop for Tab; arrows move inside
        td.append(b);
        line.append(td);
        cells.push({b, g, m, label});
      });
      return line;
    });
    table.replaceChildren(head, ...lines.reverse(), foot);
    paint();
    if (busy) box.querySelector(`[data-at="${busy}"]`)?.focus();
  }

  function paint() {
    const prices = model.get("prices"), sizes = model.get("sizes"), budget = model.get("budget"), methods = model.get("methods");
    const parts = methods.map(m => model.get("ticks").reduce((sum, [g, n]) => sum + (n === m.name && prices[g] ? prices[g][n] : 0), 0));
    const total = parts.reduce((a, b) => a + b, 0), left = budget - total;
    const most = Math.max(1, ...prices.flatMap(line => Object.values(line)));
    cells.forEach(({b, g, m, label}) => {
      const on = ticked(g, m.name), price = prices[g] ? prices[g][m.name] : 0, dear = !on && price > left;
      b.className = `pl-block${on ? " pl-on" : dear ? " pl-dear" : ""}`;
      b.textContent = on ? `✓ ${said(price)}` : `+${said(price)}`;
      b.title = on ? "take it away" : dear ? `${said(price - left)} too much for the budget` : "put it here";
      b.style.setProperty("--pl-share", `${100 * price / most}%`);
      b.setAttribute("aria-pressed", on);
      b.setAttribute("aria-label", `${m.name}, ${label}: ${said(price)} numbers`);
    });
    sliders.forEach(({m, input, words}) => {
      const size = sizes[m.name];
      input.value = m.scale.indexOf(size);
      words.textContent = `${m.knob} ${size}`;
      input.setAttribute("aria-valuetext", `${m.knob} ${size}`);
    });
    purse.replaceChildren(...parts.map((n, j) => {
      const i = made("i");
      i.style.cssText = `width:${100 * n / budget}%;background:${methods[j].colour}`;
      i.title = `${methods[j].name}: ${said(n)}`;
      return i;
    }));
    spent.innerHTML = `<b class="pl-total">${said(total)}</b> of ${said(budget)} numbers spent, <b>${said(left)}</b> left` + (model.get("ticks").length ? "" : " · only the head is trained");
    Object.entries({min: 0, max: budget, now: total}).forEach(([k, v]) => purse.setAttribute(`aria-value${k}`, v));
    if (refused.textContent !== model.get("refused")) refused.textContent = model.get("refused");
  }

  box.onkeydown = e => {
    const step = {ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key];
    if (step || e.key === "Home" || e.key === "End") e.stopPropagation();   // else the notebook moves to another cell
    if (!step || !e.target.dataset.at) return;
    const [g, j] = e.target.dataset.at.split(" ").map(Number);
    const next = box.querySelector(`[data-at="${g + step[0]} ${j + step[1]}"]`);
    e.preventDefault();
    if (!next) return;
    e.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  return follow(model, build, ["methods", "groups"], paint, ["ticks", "sizes", "prices", "budget", "refused"]);
}
export default {render};
