// The figures of the course.

/** Between the two nearest lines of a grid. */
function between(grid, lines, value) {
  let k = 0;
  while (k < grid.length - 2 && grid[k + 1] < value) k++;
  const share = Math.min(1, Math.max(0, (value - grid[k]) / (grid[k + 1] - grid[k])));
  return lines[k].map((v, n) => v + share * (lines[k + 1][n] - v));
}

const POWERS = [[1e4, "10⁴"], [1, "1"], [1e-4, "10⁻⁴"], [1e-8, "10⁻⁸"], [1e-12, "10⁻¹²"]];
const shown = (v, digits = 2) => v.toFixed(digits).replace("-", "−");

Figures.register("gradient", (root, data) => {
  Figures.head(root, "How far the gradient reaches", "Measured on an Elman cell and an LSTM of 32 units before training; between measured values the lines are interpolated.");
  const plot = Figures.plot(root, { x: [0, 100], y: [1e-13, 1e4], log: true, xticks: [0, 20, 40, 60, 80, 100], yticks: POWERS, xlabel: "lag: steps back", ylabel: "size of the gradient", title: "Gradient by lag" });
  const controls = Figures.make("div", { class: "controls" });
  const said = Figures.make("p", { class: "said", "aria-live": "polite" });
  let [radius, bias] = [0.9, 1];
  const draw = () => {
    plot.clear();
    const [elman, lstm] = [between(data.radii, data.elman, radius), between(data.biases, data.lstm, bias)];
    plot.line(data.lags, elman.map((v) => 10 ** v), "c1");
    plot.line(data.lags, lstm.map((v) => 10 ** v), "c0");
    plot.text(98, 10 ** (elman[elman.length - 1] + 1.1), "Elman", "c1", "end");
    plot.text(80, 10 ** (lstm[Math.floor(0.8 * lstm.length)] + 0.7), "LSTM", "c0", "end");
    const last = data.lags.length - 1;
    const rate = (line) => 10 ** ((line[last] - line[0]) / (data.lags[last] - data.lags[0]));
    said.textContent = Figures.say("Each step back multiplies the gradient by about {0} in the Elman cell and by {1} in the LSTM; the sigmoid of its forget bias is {2}.", shown(rate(elman), 3), shown(rate(lstm), 3), shown(1 / (1 + Math.exp(-bias)), 3));
  };
  Figures.slider(controls, "spectral radius of the Elman cell", { min: data.radii[0], max: data.radii[data.radii.length - 1], step: 0.05, value: radius, show: (v) => v.toFixed(2) }, (v) => { radius = v; draw(); });
  Figures.slider(controls, "forget bias of the LSTM", { min: data.biases[0], max: data.biases[data.biases.length - 1], step: 0.25, value: bias, show: (v) => shown(v) }, (v) => { bias = v; draw(); });
  root.append(controls, said);
  draw();
});

Figures.register("lstm", (root) => {
  Figures.head(root, "One LSTM unit in your hands", "Set the gates, then take a step. The blue line is the cell state c: the forget gate decides how much of it stays, the input gate how much of the candidate g comes in, the output gate what is shown.");
  const controls = Figures.make("div", { class: "controls" });
  const value = { i: 0.1, f: 0.95, o: 0.5, g: 0.8 };
  let history = [{ c: 0, h: 0 }];
  const plot = Figures.plot(root, { height: 240, x: [0, 40], y: [-2.2, 2.2], xticks: [0, 10, 20, 30, 40], yticks: [[-2, "−2"], [-1, "−1"], [0, "0"], [1, "1"], [2, "2"]], xlabel: "step", ylabel: "value", title: "Cell state and output of one unit" });
  const said = Figures.make("p", { class: "said", "aria-live": "polite" });
  const next = () => {
    const c = value.f * history[history.length - 1].c + value.i * value.g;
    return { c, h: value.o * Math.tanh(c) };
  };
  const draw = () => {
    plot.clear();
    const steps = history.map((_, k) => k);
    plot.line(steps, history.map((s) => s.h), "c1");
    plot.line(steps, history.map((s) => s.c), "c0");
    const [old, now] = [history[history.length - 1], next()];
    plot.text(Math.min(39.5, steps.length), old.c + 0.15, "c", "c0");
    plot.text(Math.min(39.5, steps.length), old.h - 0.25, "h", "c1");
    const half = value.f >= 1 ? "∞" : value.f <= 0 ? "0" : Math.max(0, Math.log(0.5) / Math.log(value.f)).toFixed(1);
    const numbers = [value.f, old.c, value.i, value.g, now.c, value.o, now.h].map((v) => shown(v));
    said.textContent = Figures.say("The next step: c' = {0} · {1} + {2} · {3} = {4},  h' = {5} · tanh({4}) = {6}. A gradient keeps the share f = {0} of itself a step, so half of it after {7} steps.", ...numbers, half);
  };
  const step = (times = 1) => {
    for (let k = 0; k < times; k++) { history.push(next()); if (history.length > 41) history = history.slice(1); }
    draw();
  };
  const sliders = {};
  for (const [name, text, low] of [["f", "forget gate f: keep", 0], ["i", "input gate i: let in", 0], ["g", "candidate g: what", -1], ["o", "output gate o: show", 0]]) {
    sliders[name] = Figures.slider(controls, text, { min: low, max: 1, step: 0.05, value: value[name], show: (v) => shown(v) }, (v) => { value[name] = v; draw(); });
  }
  const buttons = Figures.make("div", { class: "buttons" });
  Figures.button(buttons, "Step", () => step());
  Figures.button(buttons, "Ten steps", () => step(10));
  const set = (values) => { for (const [name, v] of Object.entries(values)) { value[name] = v; sliders[name].set(v); } draw(); };
  Figures.button(buttons, "Write 1", () => { set({ i: 1, f: 0, g: 1, o: 0 }); step(); set({ i: 0, f: 1 }); });
  Figures.button(buttons, "Keep", () => set({ i: 0, f: 1 }));
  Figures.button(buttons, "Read", () => set({ o: 1 }));
  Figures.button(buttons, "Forget", () => { set({ f: 0, i: 0 }); step(); });
  Figures.button(buttons, "Start again", () => { history = [{ c: 0, h: 0 }]; draw(); });
  root.append(controls, buttons, said);
  draw();
});

Figures.register("truncation", (root, data) => {
  Figures.head(root, "What the cut takes away", "Every dot is a step. Choose the lag of what has to be remembered, the length of a chunk, and how far a chunk looks back, or repair its border; orange arcs get no gradient.");
  const svg = Figures.drawn("svg", { viewBox: "0 0 640 190", role: "img", "aria-label": Figures.say("Which steps learn from which") });
  root.append(svg);
  const controls = Figures.make("div", { class: "controls" });
  const said = Figures.make("p", { class: "said", "aria-live": "polite" });
  const value = { lag: 4, chunk: data.chunk, back: 0, repaired: false };
  const T = 30;
  const draw = () => {
    svg.replaceChildren();
    const at = (t) => 20 + t * (600 / (T - 1));
    let learned = 0;
    for (let t = 0; t < T; t += value.chunk) {
      if (t) svg.append(Figures.drawn("line", { x1: (at(t) + at(t - 1)) / 2, x2: (at(t) + at(t - 1)) / 2, y1: 20, y2: 175, class: "axis", "stroke-dasharray": "3 3" }));
    }
    for (let t = value.lag; t < T; t++) {
      const from = t - value.lag;
      const start = Math.max(0, Math.floor(t / value.chunk) * value.chunk - value.back);
      const reached = value.repaired || from >= start;
      learned += reached ? 1 : 0;
      const height = Math.min(275, 40 + value.lag * 20);
      svg.append(Figures.drawn("path", { d: `M${at(from)},160 Q${(at(from) + at(t)) / 2},${160 - height} ${at(t)},160`, class: "line", style: `stroke:var(--${reached ? "c0" : "c1"});stroke-width:${reached ? 2 : 1.3};opacity:${reached ? 1 : 0.55}` }));
    }
    for (let t = 0; t < T; t++) svg.append(Figures.drawn("circle", { cx: at(t), cy: 160, r: 4, style: "fill:var(--pst-color-text-base)" }));
    const share = learned / (T - value.lag);
    let text = Figures.say("{0} % of the steps get a gradient from {1} steps before.", Math.round(100 * share), value.lag);
    const k = data.lags.indexOf(value.lag);
    const kind = value.repaired ? "repaired" : value.back === 0 ? "cut" : value.back === 20 ? "look back 20" : null;
    if (value.chunk === data.chunk && k >= 0 && kind && data.right[kind]) text += Figures.say(" Measured above with these settings: {0} % of the bits right (50 % is chance).", Math.round(100 * data.right[kind][k]));
    else if (share === 0) text += Figures.say(" No step does: nothing teaches the network to keep it.");
    if (value.repaired) text += Figures.say(" The trace of influences carries it over every border, whatever the length of a chunk.");
    said.textContent = text;
  };
  Figures.slider(controls, "lag", { min: 1, max: 12, step: 1, value: value.lag }, (v) => { value.lag = v; draw(); });
  Figures.slider(controls, "chunk", { min: 1, max: 15, step: 1, value: value.chunk, show: (v) => Figures.say("{0} steps", v) }, (v) => { value.chunk = v; draw(); });
  Figures.slider(controls, "look back", { min: 0, max: 20, step: 5, value: 0, show: (v) => Figures.say("{0} steps more", v) }, (v) => { value.back = v; draw(); });
  const buttons = Figures.make("div", { class: "buttons" });
  const repair = Figures.button(buttons, "Repair the border", () => {
    value.repaired = !value.repaired;
    repair.setAttribute("aria-pressed", String(value.repaired));
    draw();
  }, { "aria-pressed": "false" });
  root.append(controls, buttons, said);
  draw();
});

Figures.register("portrait", (root) => {
  Figures.head(root, "Where two units go", "h' = tanh(h · W) without input. W turns by an angle and stretches; the small lines show where each state goes. Touch or click to let a state go, or move the start with the arrow keys.");
  const size = 420;
  const svg = Figures.drawn("svg", { viewBox: `0 0 ${size} ${size}`, role: "application", tabindex: "0", "aria-label": Figures.say("Plane of two units; arrow keys move the start") });
  svg.style.maxWidth = "26rem";
  svg.style.margin = "0 auto";
  const ground = Figures.drawn("g"), path = Figures.drawn("g");
  svg.append(ground, path);
  root.append(svg);
  const controls = Figures.make("div", { class: "controls" });
  const said = Figures.make("p", { class: "said", "aria-live": "polite" });
  const value = { stretch: 1.4, angle: 0, skew: 0.15 };
  let start = [0.6, -0.4];
  const at = (v) => size / 2 + (v * size) / 2.1;
  const matrix = () => {
    const a = (value.angle * Math.PI) / 180;
    const [c, s] = [Math.cos(a) * value.stretch, Math.sin(a) * value.stretch];
    return [c, s + value.skew, -s + value.skew, c];
  };
  const step = ([x, y], [p, q, r, w]) => [Math.tanh(x * p + y * r), Math.tanh(x * q + y * w)];
  const fixedPoints = (m) => {
    const found = [];
    for (let i = -4; i <= 4; i++) for (let j = -4; j <= 4; j++) {
      let [x, y] = [i / 4.1, j / 4.1];
      for (let k = 0; k < 40; k++) {  // Newton
        const [u, v] = step([x, y], m);
        const [du, dv] = [1 - u * u, 1 - v * v];
        const [a, b, c, d] = [du * m[0] - 1, du * m[2], dv * m[1], dv * m[3] - 1];
        const det = a * d - b * c;
        if (Math.abs(det) < 1e-12) break;
        const [e, f] = [u - x, v - y];
        x -= (d * e - b * f) / det;
        y -= (a * f - c * e) / det;
      }
      const [u, v] = step([x, y], m);
      if (Math.abs(u - x) + Math.abs(v - y) > 1e-9 || Math.abs(x) > 1 || Math.abs(y) > 1) continue;
      if (found.some(([s, t]) => Math.hypot(s - x, t - y) < 1e-4)) continue;
      const [du, dv] = [1 - u * u, 1 - v * v];
      const [trace, det] = [du * m[0] + dv * m[3], du * m[0] * dv * m[3] - du * m[2] * dv * m[1]];
      const root2 = (trace * trace) / 4 - det;
      const largest = root2 >= 0 ? Math.abs(trace) / 2 + Math.sqrt(root2) : Math.sqrt(det);
      found.push([x, y, largest]);
    }
    return found;
  };
  const run = () => {
    path.replaceChildren();
    const m = matrix();
    let state = start;
    const points = [state];
    for (let k = 0; k < 60; k++) points.push((state = step(state, m)));
    path.append(Figures.drawn("path", { class: "line", style: "stroke:var(--c1);stroke-width:1.4", d: points.map(([x, y], k) => `${k ? "L" : "M"}${at(x).toFixed(1)},${at(-y).toFixed(1)}`).join("") }));
    points.forEach(([x, y], k) => path.append(Figures.drawn("circle", { cx: at(x), cy: at(-y), r: k ? 2.2 : 5, style: "fill:var(--c1)" })));
  };
  const draw = () => {
    ground.replaceChildren();
    const m = matrix();
    ground.append(Figures.drawn("rect", { x: at(-1), y: at(-1), width: at(1) - at(-1), height: at(1) - at(-1), class: "axis" }));
    for (let i = -9; i <= 9; i += 2) for (let j = -9; j <= 9; j += 2) {
      const [x, y] = [i / 10, j / 10];
      const [u, v] = step([x, y], m);
      const scale = 0.45;
      ground.append(Figures.drawn("line", { x1: at(x), y1: at(-y), x2: at(x + (u - x) * scale), y2: at(-(y + (v - y) * scale)), class: "grid", style: "stroke:var(--c0);stroke-opacity:.7" }));
      ground.append(Figures.drawn("circle", { cx: at(x), cy: at(-y), r: 1.4, style: "fill:var(--c0)" }));
    }
    const fixed = fixedPoints(m);
    for (const [x, y, largest] of fixed) ground.append(Figures.drawn("circle", { cx: at(x), cy: at(-y), r: 6.5, style: `fill:${largest < 1 ? "var(--c2)" : "none"};stroke:var(--c2);stroke-width:2.5` }));
    const stable = fixed.filter(([, , largest]) => largest < 1).length;
    const words = ["no stable fixed point: the state goes round for ever, and keeps time", "one stable fixed point: whatever the state was, it is forgotten", "{0} stable fixed points: the state remembers which of {0} it was pushed to"][Math.min(stable, 2)];
    said.textContent = Figures.say("Eigenvalues of W have size {0}; {1}. Filled circles are stable fixed points, empty ones are not.", shown(Math.max(...sizes(m))), Figures.say(words, stable));
    run();
  };
  const sizes = ([p, q, r, w]) => {
    const [t, d] = [p + w, p * w - q * r];
    const root2 = (t * t) / 4 - d;
    return root2 >= 0 ? [Math.abs(t / 2 + Math.sqrt(root2)), Math.abs(t / 2 - Math.sqrt(root2))] : [Math.sqrt(d)];
  };
  svg.addEventListener("pointerdown", (event) => {
    const box = svg.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * size, ((event.clientY - box.top) / box.height) * size];
    const back = (v) => Math.min(1, Math.max(-1, ((v - size / 2) * 2.1) / size));
    start = [back(x), -back(y)];
    run();
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();  // the theme turns pages with these keys
    start = start.map((v, k) => Math.min(1, Math.max(-1, v + move[k])));
    run();
  });
  Figures.slider(controls, "stretch", { min: 0.3, max: 2.5, step: 0.05, value: value.stretch, show: (v) => v.toFixed(2) }, (v) => { value.stretch = v; draw(); });
  Figures.slider(controls, "turn", { min: -90, max: 90, step: 5, value: 0, show: (v) => `${shown(v, 0)}°` }, (v) => { value.angle = v; draw(); });
  Figures.slider(controls, "skew", { min: -1, max: 1, step: 0.05, value: value.skew, show: (v) => shown(v) }, (v) => { value.skew = v; draw(); });
  root.append(controls, said);
  draw();
});
