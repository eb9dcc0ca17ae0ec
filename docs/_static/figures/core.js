// Figures that one can play with: <figure class="live" data-figure="name"> with its data as JSON inside.

const Figures = {
  kinds: {},
  korean: {},  // by the words in English

  /** Words in the language of the page, with numbers in the places {0}, {1}, ... */
  say(words, ...numbers) {
    const said = (document.documentElement.lang === "ko" && this.korean[words]) || words;
    return said.replace(/\{(\d)\}/g, (_, k) => numbers[k]);
  },

  register(name, draw) { this.kinds[name] = draw; },
  start() {
    for (const root of document.querySelectorAll("figure.live")) {
      const data = root.querySelector("script[type='application/json']");
      const draw = this.kinds[root.dataset.figure];
      if (draw && !root.dataset.ready) { draw(root, data ? JSON.parse(data.textContent) : {}); root.dataset.ready = "1"; }
    }
  },

  /** An element with attributes, listeners (on) and children; texts are never read as HTML. */
  make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  },

  drawn(tag, properties = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  },

  head(root, title, about) {
    root.append(Figures.make("h4", {}, Figures.say(title)), Figures.make("p", { class: "about" }, Figures.say(about)));
  },

  /** A slider with its name and its value; native, so that keys and fingers move it. */
  slider(parent, name, { min, max, step, value, show = (v) => String(v) }, act) {
    name = Figures.say(name);
    const output = Figures.make("output", {}, show(value));
    const input = Figures.make("input", { type: "range", min, max, step, value, "aria-label": name });
    input.addEventListener("input", () => {
      output.textContent = show(Number(input.value));
      input.setAttribute("aria-valuetext", show(Number(input.value)));
      act(Number(input.value));
    });
    parent.append(Figures.make("label", {}, name, output, input));
    return { get: () => Number(input.value), set: (v) => { input.value = v; output.textContent = show(Number(input.value)); } };
  },

  button(parent, text, act, properties = {}) {
    const button = Figures.make("button", { type: "button", ...properties, on: { click: act } }, Figures.say(text));
    parent.append(button);
    return button;
  },

  /** Axes: numbers to places, and the ticks; log10 on y where asked for. */
  plot(root, { width = 640, height = 280, x, y, xlabel = "", ylabel = "", xticks, yticks, log = false, title = "" }) {
    const [left, right, top, bottom] = [56, 14, 12, 36];
    const svg = Figures.drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": Figures.say(title) });
    const along = (v) => left + ((v - x[0]) / (x[1] - x[0])) * (width - left - right);
    const scale = log ? (v) => Math.log10(Math.max(v, 1e-300)) : (v) => v;
    const [low, high] = y.map(scale);
    const up = (v) => {
      const share = (scale(v) - low) / (high - low);
      return height - bottom - Math.min(1.02, Math.max(-0.02, share)) * (height - top - bottom);
    };
    for (const [v, text] of yticks) {
      svg.append(Figures.drawn("line", { class: "grid", x1: left, x2: width - right, y1: up(v), y2: up(v) }));
      svg.append(Figures.drawn("text", { x: left - 6, y: up(v) + 4, "text-anchor": "end" }, text));
    }
    for (const v of xticks) svg.append(Figures.drawn("text", { x: along(v), y: height - bottom + 16, "text-anchor": "middle" }, String(v)));
    svg.append(Figures.drawn("path", { class: "axis", d: `M${left},${top}V${height - bottom}H${width - right}` }));
    svg.append(Figures.drawn("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, Figures.say(xlabel)));
    svg.append(Figures.drawn("text", { class: "upright", x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, Figures.say(ylabel)));
    const layer = Figures.drawn("g");
    svg.append(layer);
    root.append(svg);
    return {
      svg, layer, along, up,
      clear() { layer.replaceChildren(); },
      line(xs, ys, colour, dash = "") {
        const d = xs.map((v, k) => `${k ? "L" : "M"}${along(v).toFixed(1)},${up(ys[k]).toFixed(1)}`).join("");
        layer.append(Figures.drawn("path", { class: "line", d, style: `stroke:var(--${colour})`, "stroke-dasharray": dash }));
      },
      text(v, w, text, colour = "", anchor = "start") {
        layer.append(Figures.drawn("text", { x: along(v), y: up(w), "text-anchor": anchor, style: colour ? `fill:var(--${colour});font-weight:600` : "" }, text));
      },
    };
  },
};

document.addEventListener("DOMContentLoaded", () => Figures.start());
