// Charts as SVG: lines on linear or logarithmic axes with a readout, and dots. All numbers are also in a table.

const COLORS = 7;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2"];
const MARKS = ["M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0", "M0,-3.6L3.4,2.6L-3.4,2.6Z", "M-2.7,-2.7H2.7V2.7H-2.7Z", "M0,-3.8L3.8,0L0,3.8L-3.8,0Z", "M0,3.6L3.4,-2.6L-3.4,-2.6Z"];
const color = (k) => `var(--c${k % COLORS})`;

function linearTicks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((k) => k * power >= raw) ?? 10);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(k * step);
  return ticks.map((value) => [value, Math.abs(value) < step * 1e-6 ? "0" : short(value)]);
}

function logTicks(low, high, wanted) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  if (last - first < 2) {
    const ticks = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const k of [1, 2, 5]) if (k * 10 ** p >= low * 0.999 && k * 10 ** p <= high * 1.001) ticks.push(k * 10 ** p);
    }
    if (ticks.length > 1) return ticks.map((v) => [v, powerText(v)]);
    return linearTicks(low, high, wanted);
  }
  const every = Math.max(1, Math.ceil((last - first + 1) / wanted));
  const ticks = [];
  for (let p = first; p <= last; p += every) ticks.push([10 ** p, powerText(10 ** p)]);
  return ticks;
}

const powerText = (v) => (v < 0.00999 || v >= 1e12 ? exponent(v, 0).replace(/^1·/, "") : short(v));

function axisOf(spec, values, from, to, ticks) {
  const known = values.filter((v) => v !== null && Number.isFinite(v) && (!spec.log || v > 0));
  let low = spec.min ?? known.reduce((a, b) => Math.min(a, b), Infinity);
  let high = spec.max ?? known.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!(low <= high)) [low, high] = spec.log ? [1, 10] : [0, 1];
  if (spec.log && spec.floor) low = Math.max(low, high * spec.floor);
  if (low === high) [low, high] = spec.log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  if (spec.pad && !spec.log) {
    const margin = 0.06 * (high - low);
    [low, high] = [spec.min ?? low - margin, spec.max ?? high + margin];
  }
  const turn = spec.log ? Math.log : (v) => v;
  const [a, b] = [turn(low), turn(high)];
  const place = (v) => from + ((turn(spec.log ? Math.max(low, v) : v) - a) / (b - a)) * (to - from);
  return { low, high, place, ticks: (spec.log ? logTicks : linearTicks)(low, high, ticks) };
}

/** Redraws when its width changes; charts that are no longer in the page are forgotten. */
const watched = new Map();
const watcher = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const chart = watched.get(target);
    if (!target.isConnected) {
      watcher.unobserve(target);
      watched.delete(target);
    } else if (contentRect.width > 0 && Math.abs(contentRect.width - chart.width) > 1) chart.draw(contentRect.width);
  }
});

/**
 * A figure with a chart of lines.
 *
 * spec: title, about, x and y ({label, log, min, max, pad, floor, format}), series ([{name, x, y, color, dash, faint, dots}]),
 * bands ([{x, low, high, color}]), rules ([{x | y, name}]), shades ([{from, name}]), height, wide, first (name of x in
 * the table).
 */
function lineChart(spec) {
  const title = make("figcaption", {}, spec.title);
  const keyline = make("ul", { class: "keyline" });
  for (const one of spec.series) {
    if (one.name) keyline.append(keyEntry(one));
  }
  for (const shade of spec.shades ?? []) keyline.append(make("li", {}, shadeKey(), shade.name));
  const box = make("div", { class: "drawing" });
  const readout = make("output", { class: "readout", "aria-live": "polite" });
  const figure = make("figure", { class: spec.wide ? "chart wide" : "chart" }, title, keyline, box, readout, numbers(spec));
  if (spec.about) title.after(make("p", { class: "hint" }, spec.about));
  const xs = [...new Set(spec.series.flatMap((one) => one.x))].filter((x) => x !== null && (!spec.x.log || x > 0)).sort((a, b) => a - b);
  const chart = { width: 0, at: -1, draw: (width) => drawLines(chart, spec, box, width, xs, readout) };
  watched.set(box, chart);
  watcher.observe(box);
  return figure;
}

function keyEntry(one) {
  const line = drawn("line", { x1: 1, x2: 27, y1: 6, y2: 6, stroke: color(one.color), "stroke-width": one.faint ? 1.2 : 2.2, "stroke-dasharray": DASHES[one.dash ?? 0], opacity: one.faint ? 0.5 : 1 });
  const swatch = drawn("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" }, line);
  if (one.dots !== undefined) swatch.append(drawn("path", { d: MARKS[one.dots], transform: "translate(14,6)", fill: color(one.color) }));
  return make("li", {}, swatch, one.name);
}

function shadeKey() {
  return drawn("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" }, drawn("rect", { width: 28, height: 12, fill: "var(--band)" }));
}

function drawLines(chart, spec, box, width, xs, readout) {
  chart.width = width;
  const height = spec.height ?? 250;
  const right = 12;
  const [top, bottom] = [10, height - 38];
  const allX = [...spec.series.flatMap((one) => one.x), ...(spec.rules ?? []).flatMap((rule) => (rule.x === undefined ? [] : [rule.x]))];
  const allY = [
    ...spec.series.flatMap((one) => (one.faint ? [] : one.y)),
    ...(spec.bands ?? []).flatMap((band) => [...band.low, ...band.high]),
    ...(spec.rules ?? []).flatMap((rule) => (rule.y === undefined ? [] : [rule.y])),
  ];
  const y = axisOf(spec.y, allY, bottom, top, 5);
  const left = 32 + 7 * Math.max(2, ...y.ticks.map(([, text]) => text.length));
  const x = axisOf(spec.x, allX, left, width - right, Math.max(2, Math.floor((width - left) / 90)));
  const plot = drawn("g");
  const names = spec.series.filter((one) => one.name).map((one) => one.name).join(", ");
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: "0", "aria-label": `${spec.title}: ${spec.y.label} over ${spec.x.label}${names ? `; ${names}` : ""}. Left and right arrow keys read values.` });
  for (const shade of spec.shades ?? []) {
    const from = x.place(Math.max(shade.from, x.low));
    if (shade.from < x.high) svg.append(drawn("rect", { x: from, y: top, width: Math.max(0, width - right - from), height: bottom - top, fill: "var(--band)" }));
  }
  for (const [value, text] of x.ticks) {
    svg.append(drawn("line", { class: "grid", x1: x.place(value), x2: x.place(value), y1: top, y2: bottom }));
    svg.append(drawn("text", { x: x.place(value), y: bottom + 16, "text-anchor": "middle" }, text));
  }
  for (const [value, text] of y.ticks) {
    svg.append(drawn("line", { class: "grid", x1: left, x2: width - right, y1: y.place(value), y2: y.place(value) }));
    svg.append(drawn("text", { x: left - 6, y: y.place(value) + 4, "text-anchor": "end" }, text));
  }
  const id = `clip-${++clips}`;
  svg.append(drawn("clipPath", { id }, drawn("rect", { x: left, y: top - 3, width: Math.max(0, width - left - right + 3), height: bottom - top + 6 })));
  plot.setAttribute("clip-path", `url(#${id})`);
  for (const band of spec.bands ?? []) {
    const points = [...band.x.map((v, k) => [v, band.high[k]]), ...band.x.map((v, k) => [v, band.low[k]]).reverse()];
    plot.append(drawn("path", { d: pathOf(points, x, y, spec, true), fill: color(band.color), opacity: 0.22 }));
  }
  for (const one of spec.series) {
    const points = one.x.map((v, k) => [v, one.y[k]]);
    plot.append(drawn("path", { d: pathOf(points, x, y, spec), fill: "none", stroke: color(one.color), "stroke-width": one.faint ? 1 : 2, opacity: one.faint ? 0.4 : 1, "stroke-dasharray": DASHES[one.dash ?? 0], "stroke-linejoin": "round" }));
    if (one.dots !== undefined) {
      for (const [px, py] of points) {
        if (drawable(px, py, spec)) plot.append(drawn("path", { d: MARKS[one.dots % MARKS.length], transform: `translate(${x.place(px)},${y.place(py)})`, fill: color(one.color) }));
      }
    }
  }
  svg.append(plot);
  const placed = [];
  const upright = [];
  for (const rule of spec.rules ?? []) {
    if (rule.x !== undefined) {
      const px = x.place(rule.x);
      svg.append(drawn("line", { class: "rule", x1: px, x2: px, y1: top, y2: bottom }));
      const end = px > width - 110;
      const near = upright.filter((other) => Math.abs(other - px) < 90).length;
      upright.push(px);
      svg.append(drawn("text", { class: "strong", x: px + (end ? -5 : 5), y: top + 12 + 15 * near, "text-anchor": end ? "end" : "start" }, rule.name));
    } else {
      const py = y.place(rule.y);
      svg.append(drawn("line", { class: "rule", x1: left, x2: width - right, y1: py, y2: py }));
      let ty = py - 4;
      while (placed.some((other) => Math.abs(other - ty) < 13)) ty += 13;
      placed.push(ty);
      svg.append(drawn("text", { class: "strong", x: rule.start ? left + 5 : width - right - 2, y: ty, "text-anchor": rule.start ? "start" : "end" }, rule.name));
    }
  }
  svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: bottom, y2: bottom }));
  svg.append(drawn("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, spec.x.label));
  svg.append(drawn("text", { x: 12, y: (top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(top + bottom) / 2})` }, spec.y.label));
  const cross = drawn("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" });
  svg.append(cross);
  const read = (at) => {
    chart.at = Math.max(0, Math.min(xs.length - 1, at));
    if (!xs.length) return;
    const px = x.place(xs[chart.at]);
    for (const name of ["x1", "x2"]) cross.setAttribute(name, px);
    cross.setAttribute("visibility", "visible");
    const parts = spec.series.filter((one) => one.name && one.x.length).map((one) => `${one.name} ${fixed(nearest(one, xs[chart.at]))}`);
    readout.textContent = `${spec.x.label} ${short(xs[chart.at])}: ${parts.join(", ")}`;
  };
  svg.addEventListener("pointermove", (event) => {
    const at = ((event.clientX - svg.getBoundingClientRect().left) * width) / svg.getBoundingClientRect().width;
    let best = 0;
    for (let k = 1; k < xs.length; k++) if (Math.abs(x.place(xs[k]) - at) < Math.abs(x.place(xs[best]) - at)) best = k;
    read(best);
  });
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (steps === undefined) return;
    event.preventDefault();
    read(chart.at + steps);
  });
  box.replaceChildren(svg);
}
let clips = 0;

const drawable = (px, py, spec) => px !== null && py !== null && Number.isFinite(py) && (!spec.x.log || px > 0) && (!spec.y.log || py > 0);

function pathOf(points, x, y, spec, closed = false) {
  let [d, pen] = ["", "M"];
  for (const [px, py] of points) {
    if (!drawable(px, py, spec)) {
      if (!closed) pen = "M";
      continue;
    }
    d += `${pen}${x.place(px).toFixed(1)},${y.place(py).toFixed(1)}`;
    pen = "L";
  }
  return closed && d ? `${d}Z` : d;
}

function nearest(one, at) {
  let best = 0;
  for (let k = 1; k < one.x.length; k++) if (Math.abs(one.x[k] - at) < Math.abs(one.x[best] - at)) best = k;
  return one.y[best];
}

/** The numbers of a chart, at most 40 rows of them, made when they are asked for. */
function numbers(spec) {
  const box = make("div", { class: "table-box", tabindex: "0", role: "group", "aria-label": `${spec.title}, numbers` });
  const details = make("details", {}, make("summary", {}, "Numbers"), box);
  details.addEventListener("toggle", () => {
    if (!details.open || box.childElementCount) return;
    const series = spec.series.filter((one) => one.name && one.x.length);
    const longest = series.reduce((a, b) => (b.x.length > a.x.length ? b : a), { x: [] });
    const every = Math.max(1, Math.ceil(longest.x.length / 40));
    const rows = longest.x.filter((_, k) => k % every === 0 || k === longest.x.length - 1);
    const head = make("tr", {}, ...[spec.x.label, ...series.map((one) => one.name)].map((text) => make("th", { scope: "col", class: "number", style: "padding:.3rem .55rem" }, text)));
    const body = rows.map((at) => make("tr", {}, ...[short(at), ...series.map((one) => fixed(nearest(one, at), 4))].map((text) => make("td", { class: "number" }, text))));
    box.append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  });
  return details;
}
