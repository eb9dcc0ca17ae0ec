// The sections below the text: what the run is, its training, its dynamics, its samples, and the comparison of several.

const BASELINES = { unigram: "unigram", witten_bell: "5-gram", xz: "xz −9e" };

function showFacts() {
  const { run } = state;
  const { done, eval: evals } = run.training;
  const known = evals.val_loss.filter((v) => v !== null);
  const best = done?.val_loss ?? (known.length ? Math.min(...known) : null);
  const both = (loss, of) => [`${fixed(loss)} nats`, make("small", {}, `${fixed(loss / Math.LN2)} bits a symbol, ${of}`)];
  const big = [["validation loss", best === null ? "–" : both(best, done ? "of the validation text" : "of a part of the validation text")]];
  if (done?.test_loss) big.push(["test loss", both(done.test_loss, "of text that nothing was chosen by")]);
  big.push(["loss in this page", both(run.mean, `of the ${count(run.count)} symbols below`)]);
  const entry = (kind) => ([name, value]) => make("div", { class: kind }, make("dt", {}, name), make("dd", {}, ...[value].flat()));
  byId("facts").replaceChildren(...big.map(entry("big")), ...Object.entries(run.facts).map(entry("")));
}

function overSymbols(columns) {
  return state.axis === "minutes" ? columns.seconds.map((s) => (s === null ? null : s / 60)) : columns.symbols;
}

const trainingAxis = () => (state.axis === "minutes" ? { label: "minutes" } : { label: "symbols seen", log: true });

function smooth(values) {
  return values.map((_, k) => {
    const half = Math.floor(0.08 * k);
    const part = values.slice(k - half, k + half + 1).filter((v) => v !== null);
    return part.length ? part.reduce((a, b) => a + b, 0) / part.length : null;
  });
}

function showTraining() {
  const { run } = state;
  const { train, eval: evals, baselines, clip, rollbacks } = run.training;
  const box = byId("training-charts");
  byId("axis").hidden = !train.loss.length;
  if (!train.loss.length) {
    box.replaceChildren(make("p", { class: "hint" }, "This run has no metrics of its training."));
    return;
  }
  fillChips(byId("axis"), "axis", [["symbols", "symbols seen"], ["minutes", "time"]], state.axis, (axis) => {
    state.axis = axis;
    const held = byId("axis").contains(document.activeElement);
    showTraining();
    if (held) byId("axis").querySelector("input:checked").focus();
    if (several) showComparison();
  });
  const [x, at] = [trainingAxis(), overSymbols(train)];
  const back = rollbacks.map((to) => ({ x: at[Math.max(0, train.step.findIndex((step) => step >= to))], name: "rolled back" }));
  const some = (column) => column.some((v) => v !== null);
  const charts = [
    lineChart({
      title: "Loss", wide: true, height: 320, x, y: { label: "nats a symbol", pad: true },
      series: [
        { name: "training", x: at, y: train.loss, color: 0, faint: true },
        { name: "training, smoothed", x: at, y: smooth(train.loss), color: 0 },
        { name: "validation", x: overSymbols(evals), y: evals.val_loss, color: 1, dash: 1, dots: 0 },
      ],
      rules: [...Object.entries(baselines).map(([name, y]) => ({ y, start: true, name: `${BASELINES[name] ?? name} ${fixed(y)}` })), ...back],
    }),
  ];
  if (some(train.grad_norm)) {
    charts.push(lineChart({
      title: "Gradient norm", x, y: { label: "norm", log: true },
      series: [{ name: "mean", x: at, y: train.grad_norm, color: 2 }, ...(some(train.grad_norm_max) ? [{ name: "largest", x: at, y: train.grad_norm_max, color: 3, dash: 1 }] : [])],
      rules: clip ? [{ y: clip, name: `clipped at ${clip}` }] : [],
    }));
  }
  if (some(train.clip_rate)) {
    charts.push(lineChart({
      title: "Clip rate", about: clip ? null : "This run does not clip by the norm.", x,
      y: { label: "% of updates", min: 0, max: Math.max(10, 100 * Math.max(...train.clip_rate)) },
      series: [{ name: "clipped", x: at, y: train.clip_rate.map((v) => (v === null ? null : 100 * v)), color: 1 }],
    }));
  }
  if (some(train.lr)) {
    charts.push(lineChart({ title: "Learning rate", x, y: { label: "learning rate", min: 0 }, series: [{ name: "learning rate", x: at, y: train.lr, color: 4 }] }));
  }
  box.replaceChildren(...charts);
}

function relative(values) {
  const first = values[0] > 0 ? values[0] : 1;
  return values.map((v) => (v === null ? null : v / first));
}

function cut(gradient) {
  return { rules: [{ x: gradient.chunk_len, name: `cut at ${gradient.chunk_len}` }], shades: [{ from: gradient.chunk_len, name: "beyond the cut of the training: no gradient comes from here" }] };
}

function showGradient() {
  const { gradient } = state.run;
  const about = byId("gradient-about");
  if (!gradient) {
    about.textContent = "The text is too short to measure it.";
    byId("gradient-charts").replaceChildren();
    return;
  }
  about.textContent =
    `How much of the gradient of a symbol's loss reaches the state k steps before, along ${gradient.pieces} pieces of ${count(gradient.length)} symbols, relative to lag 1. ` +
    `Training cut the text into chunks of ${gradient.chunk_len} symbols, which takes from every lag and everything beyond: ${percent(gradient.lost)} of the gradient, summed over the lags shown.`;
  const [x, y] = [{ label: "lag k, steps" }, { label: "relative to lag 1", log: true, floor: 1e-12 }];
  const charts = [
    lineChart({
      title: "The whole state", x, y, ...cut(gradient),
      series: [
        { name: "mean", x: gradient.lags, y: relative(gradient.norm), color: 0 },
        { name: "geometric mean", x: gradient.lags, y: relative(gradient.typical), color: 1, dash: 1 },
      ],
    }),
  ];
  if (gradient.names.length > 1) {
    charts.push(lineChart({ title: "By layer and part of the state", x, y: { label: "gradient norm", log: true, floor: 1e-12 }, ...cut(gradient), series: gradient.names.map((name, k) => ({ name, x: gradient.lags, y: gradient.fields[k], color: k, dash: k % DASHES.length })) }));
  }
  byId("gradient-charts").replaceChildren(...charts);
}

function showGates() {
  const gates = state.run.leaves.filter((leaf) => leaf.kind === "gate");
  const layers = [...new Set(gates.map((leaf) => layerOf(leaf.name)))];
  byId("gates-about").textContent = gates.length
    ? "A dot for each gate of each unit: how often it is above 0.9 (open) and below 0.1 (shut). A forget gate that is always open is an integrator. Click a dot to colour the text by it, where its values are in this page."
    : "The cells of this network have no gates.";
  byId("gates-charts").replaceChildren(...layers.map((layer) => gateChart(layer, gates.filter((leaf) => layerOf(leaf.name) === layer))));
}

function gateChart(layer, gates) {
  const keyline = make("ul", { class: "keyline" });
  gates.forEach((leaf, k) => {
    const swatch = drawn("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" }, drawn("path", { d: MARKS[k % MARKS.length], transform: "translate(14,6)", fill: color(k) }));
    const open = leaf.right.reduce((a, b) => a + b, 0) / leaf.size;
    const shut = leaf.left.reduce((a, b) => a + b, 0) / leaf.size;
    keyline.append(make("li", {}, swatch, `${leaf.name.slice(leaf.name.indexOf(".") + 1)}: open ${percent(open, 0)}, shut ${percent(shut, 0)} of the time`));
  });
  const box = make("div");
  const readout = make("output", { class: "readout" });
  const chart = { width: 0, draw: (width) => drawGates(chart, box, width, layer, gates, readout) };
  watched.set(box, chart);
  watcher.observe(box);
  return make("figure", { class: "chart" }, make("figcaption", {}, `Layer ${layer.slice(1)}`), keyline, box, readout);
}

function drawGates(chart, box, width, layer, gates, readout) {
  chart.width = width;
  const side = Math.min(width - 88, 380);
  const [left, top] = [62, 10];
  const [x, y] = [(v) => left + v * side, (v) => top + (1 - v) * side];
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${side + 52}`, height: side + 52, role: "img", "aria-label": `Saturation of the gates of layer ${layer.slice(1)}; the numbers are in the table of all units.` });
  for (const v of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(drawn("line", { class: "grid", x1: x(v), x2: x(v), y1: y(0), y2: y(1) }), drawn("line", { class: "grid", x1: x(0), x2: x(1), y1: y(v), y2: y(v) }));
    svg.append(drawn("text", { x: x(v), y: y(0) + 16, "text-anchor": "middle" }, `${100 * v} %`), drawn("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, `${100 * v} %`));
  }
  svg.append(drawn("line", { class: "axis", x1: x(0), x2: x(1), y1: y(1), y2: y(0) }));
  gates.forEach((leaf, k) => {
    const group = drawn("g", { fill: color(k), opacity: 0.6 });
    for (let n = 0; n < leaf.size; n++) group.append(drawn("path", { d: MARKS[k % MARKS.length], transform: `translate(${x(leaf.right[n]).toFixed(1)},${y(leaf.left[n]).toFixed(1)})` }));
    svg.append(group);
  });
  svg.append(drawn("text", { x: x(0.5), y: side + 46, "text-anchor": "middle" }, "share of time above 0.9 (open)"));
  svg.append(drawn("text", { x: 12, y: y(0.5), "text-anchor": "middle", transform: `rotate(-90 12 ${y(0.5)})` }, "share of time below 0.1 (shut)"));
  const find = (event) => {
    const ground = svg.getBoundingClientRect();
    const [px, py] = [((event.clientX - ground.left) * width) / ground.width, ((event.clientY - ground.top) * width) / ground.width];
    let [found, near] = [null, 14 ** 2];
    for (const leaf of gates) {
      for (let n = 0; n < leaf.size; n++) {
        const distance = (x(leaf.right[n]) - px) ** 2 + (y(leaf.left[n]) - py) ** 2;
        if (distance < near) [found, near] = [[leaf, n], distance];
      }
    }
    return found;
  };
  svg.addEventListener("pointermove", (event) => {
    const found = find(event);
    svg.style.cursor = found ? "pointer" : "default";
    if (found) readout.textContent = `${found[0].name}.${found[1]}: open ${percent(found[0].right[found[1]])}, shut ${percent(found[0].left[found[1]])} of the time`;
  });
  svg.addEventListener("click", (event) => {
    const found = find(event);
    if (found) goTo(`${found[0].name}.${found[1]}`);
  });
  box.replaceChildren(svg);
}

function showLyapunov() {
  const { lyapunov } = state.run;
  const about = byId("lyapunov-about");
  if (!lyapunov) {
    about.textContent = "The text is too short to measure them.";
    byId("lyapunov-charts").replaceChildren();
    return;
  }
  const first = lyapunov.exponents[0];
  about.textContent =
    `At what rates small changes of the state die out (below zero) or grow (above), along ${lyapunov.pieces} pieces of ${count(lyapunov.length)} symbols: ` +
    `the first ${lyapunov.exponents.length} of ${count(lyapunov.size)}. The largest is ${fixed(first)} nats a step` +
    `${first !== null && first < 0 ? `, so a change is down to a third after ${count(Math.round(-1 / first))} steps` : ""}. Kaplan-Yorke dimension ${fixed(lyapunov.dimension, 2)}.`;
  const ranks = lyapunov.exponents.map((_, k) => k + 1);
  byId("lyapunov-charts").replaceChildren(
    lineChart({ title: "Spectrum", x: { label: "rank" }, y: { label: "nats a step", pad: true }, rules: [{ y: 0, name: "" }], bands: [{ x: ranks, low: lyapunov.low, high: lyapunov.high, color: 0 }], series: [{ name: "exponent (band: between the pieces)", x: ranks, y: lyapunov.exponents, color: 0, dots: 0 }] }),
    lineChart({ title: "How the first ones settled", x: { label: "steps counted" }, y: { label: "nats a step", pad: true }, rules: [{ y: 0, name: "" }], series: lyapunov.running.map((y, k) => ({ name: `number ${k + 1}`, x: lyapunov.steps, y, color: k, dash: k })) }),
  );
}

function showSamples() {
  const { samples, training } = state.run;
  const box = byId("samples-box");
  if (!samples.length) {
    box.replaceChildren(make("p", { class: "hint" }, "This run has no samples."));
    return;
  }
  const text = make("pre", { class: "sample", tabindex: "0", role: "group", "aria-label": "Sample" });
  const where = make("output", {});
  const slider = make("input", { type: "range", min: 0, max: samples.length - 1, value: samples.length - 1, id: "sample-step" });
  const show = (k) => {
    slider.value = k;
    const sample = samples[slider.valueAsNumber];
    const loss = training.eval.val_loss[training.eval.step.indexOf(sample.step)];
    where.textContent = `step ${count(sample.step)}${loss ? `, validation ${fixed(loss)} nats` : ""} (${slider.valueAsNumber + 1} of ${samples.length})`;
    slider.setAttribute("aria-valuetext", where.textContent);
    text.textContent = sample.text;
  };
  slider.addEventListener("input", () => show(slider.valueAsNumber));
  const button = (name, by) => make("button", { type: "button", on: { click: () => show(slider.valueAsNumber + by) } }, name);
  box.replaceChildren(make("div", { class: "sample-tools" }, button("Earlier", -1), make("label", { class: "sr", for: "sample-step" }, "Step of the training"), slider, button("Later", 1), where), text);
  show(samples.length - 1);
}
