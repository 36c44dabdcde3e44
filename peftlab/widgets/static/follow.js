// Build the widget now and whenever a trait of `shape` changes, paint it at those of `look`; returns the end of that.
function follow(model, build, shape, paint, look) {
  const each = act => { shape.forEach(p => model[act]("change:" + p, build)); look.forEach(p => model[act]("change:" + p, paint)); };
  each("on");
  build();
  return () => each("off");                          // cells are rerun often: leave nothing behind
}
