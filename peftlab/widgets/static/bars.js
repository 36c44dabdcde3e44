// One bar per layer: drag it, or move it with the arrow keys. A bar stands on one of the values in `options`.
function render({model, el}) {
  const box = document.createElement("div");
  box.className = "pl-levels";
  box.setAttribute("role", "group");
  el.appendChild(box);
  let bars = [];
  const options = () => model.get("options");
  const short = v => String(+(+v).toPrecision(3));

  function put(i, value) {
    const values = model.get("values").slice();      // a copy: changing what get() returns sends nothing
    if (values[i] === value) return;
    values[i] = value;
    model.set("values", values);
    model.save_changes();
  }
  const move = (i, by) => {
    const o = options(), at = o.indexOf(model.get("values")[i]);
    put(i, o[Math.min(o.length - 1, Math.max(0, at + by))]);
  };

  function build() {
    box.setAttribute("aria-label", model.get("label"));
    bars = model.get("layers").map((name, i) => {
      const column = document.createElement("div"), track = document.createElement("div"), foot = document.createElement("small");
      column.className = "pl-level";
      track.className = "pl-track";
      track.innerHTML = "<span></span><i></i>";
      track.tabIndex = 0;
      track.dataset.i = i;
      track.setAttribute("role", "slider");
      track.setAttribute("aria-orientation", "vertical");
      track.setAttribute("aria-label", `${model.get("label")}, ${name}`);
      const drag = e => {
        const r = track.getBoundingClientRect(), o = options();
        const at = Math.round((o.length - 1) * (r.bottom - 4 - e.clientY) / (r.height - 20));
        put(i, o[Math.min(o.length - 1, Math.max(0, at))]);
      };
      track.onpointerdown = e => { track.setPointerCapture(e.pointerId); drag(e); };
      track.onpointermove = e => { if (e.buttons) drag(e); };
      track.onkeydown = e => {
        const by = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, Home: -999, End: 999}[e.key];
        if (!by) return;
        e.preventDefault();
        e.stopPropagation();                          // else the notebook moves to another cell
        move(i, by);
      };
      foot.textContent = i;
      foot.title = name;
      column.append(track, foot);
      return column;
    });
    box.replaceChildren(...bars);
    paint();
  }

  function paint() {
    const o = options(), values = model.get("values");
    bars.forEach((column, i) => {
      const track = column.firstChild, at = Math.max(0, o.indexOf(values[i]));
      track.children[0].textContent = short(values[i]);
      track.children[1].style.height = `calc(3px + (100% - 20px) * ${at / Math.max(1, o.length - 1)})`;
      track.setAttribute("aria-valuemin", o[0]);
      track.setAttribute("aria-valuemax", o.at(-1));
      track.setAttribute("aria-valuenow", values[i]);
    });
  }

  return follow(model, build, ["layers", "label"], paint, ["options", "values"]);
}
export default {render};
