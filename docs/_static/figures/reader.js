// The language model of the course, run in the page: the arithmetic of rnnjax.LSTM, one character after the other.

function halves(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const bits = new Uint16Array(bytes.buffer);
  return Float32Array.from(bits, (b) => {
    const [sign, exponent, fraction] = [b >> 15 ? -1 : 1, (b >> 10) & 31, b & 1023];
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

/** i, f, g, o = one_hot(symbol) @ w_ih + b + h @ w_hh;  c = f c + i g;  h = o tanh(c);  logits = h @ w + b_out */
class Reader {
  constructor(data) {
    this.H = data.hidden;
    this.V = data.vocabulary.length;
    for (const [name, packed] of Object.entries(data.weights)) this[name] = halves(packed);
    this.clear();
  }
  clear() { this.h = new Float32Array(this.H); this.c = new Float32Array(this.H); }
  read(symbol) {
    const [H, G] = [this.H, 4 * this.H];
    const z = new Float32Array(G);
    for (let k = 0; k < G; k++) z[k] = this.b[k] + this.w_ih[symbol * G + k];
    for (let j = 0; j < H; j++) {
      const h = this.h[j];
      if (h !== 0) for (let k = 0, row = j * G; k < G; k++) z[k] += h * this.w_hh[row + k];
    }
    const sigmoid = (a) => 1 / (1 + Math.exp(-a));
    for (let k = 0; k < H; k++) {
      this.c[k] = sigmoid(z[H + k]) * this.c[k] + sigmoid(z[k]) * Math.tanh(z[2 * H + k]);
      this.h[k] = sigmoid(z[3 * H + k]) * Math.tanh(this.c[k]);
    }
  }
  probabilities(temperature = 1) {
    const logits = Float64Array.from(this.b_out);
    for (let j = 0; j < this.H; j++) for (let v = 0; v < this.V; v++) logits[v] += this.h[j] * this.w[j * this.V + v];
    const largest = Math.max(...logits);
    const p = logits.map((l) => Math.exp((l - largest) / temperature));
    const total = p.reduce((a, b) => a + b, 0);
    return p.map((v) => v / total);
  }
}

Figures.register("reader", (root, data) => {
  const reader = new Reader(data);
  const number = new Map(data.vocabulary.map((c, k) => [c, k]));
  Figures.head(root, "Type, and see what it expects", "Bars: the next character, with its probability. Colours: a number of the cell state as the network reads, blue below and orange above the middle.");
  const box = Figures.make("textarea", { rows: 2, "aria-label": Figures.say("What the network reads"), spellcheck: "false" });
  box.value = data.prime;
  const bars = Figures.make("div", { class: "bars", "aria-live": "polite" });
  const text = Figures.make("div", { class: "text", tabindex: "0", "aria-label": Figures.say("The text in the colours of a unit") });
  const controls = Figures.make("div", { class: "controls" });
  const row = Figures.make("div", { class: "buttons" });
  let [unit, temperature] = [0, 0.6];

  const named = (c) => ({ "\n": "↵", " ": "␣" })[c] ?? c;
  const update = () => {
    reader.clear();
    const [symbols, values] = [[...box.value].filter((c) => number.has(c)).slice(-1500), []];
    for (const c of symbols) { reader.read(number.get(c)); values.push(reader.c[unit]); }
    const p = Array.from(reader.probabilities());
    const order = p.map((v, k) => [v, k]).sort((a, b) => b[0] - a[0]).slice(0, 6);
    bars.replaceChildren(...order.flatMap(([v, k]) => {
      const bar = Figures.make("i", {});
      bar.style.width = `${100 * v}%`;
      return [Figures.make("b", {}, named(data.vocabulary[k])), bar, Figures.make("span", {}, `${(100 * v).toFixed(1)} %`)];
    }));
    const reach = Math.max(1e-6, ...values.map(Math.abs));
    text.replaceChildren(...symbols.map((c, k) => {
      const share = values[k] / reach;
      const span = Figures.make("span", {}, c);
      span.style.background = share < 0 ? `rgba(0,114,178,${0.75 * -share})` : `rgba(213,94,0,${0.75 * share})`;
      return span;
    }));
    text.scrollTop = text.scrollHeight;
    return p;
  };
  const write = (length) => {
    let p = update();
    for (let n = 0; n < length; n++) {
      const q = reader.probabilities(temperature);
      let [at, k] = [Math.random(), 0];
      while (k < q.length - 1 && (at -= q[k]) > 0) k++;
      box.value += data.vocabulary[k];
      reader.read(k);
    }
    p = update();
    box.scrollTop = box.scrollHeight;
    return p;
  };
  Figures.slider(controls, "unit of the cell state", { min: 0, max: data.hidden - 1, step: 1, value: 0 }, (v) => { unit = v; update(); });
  Figures.slider(controls, "temperature", { min: 0.2, max: 1.5, step: 0.1, value: temperature, show: (v) => v.toFixed(1) }, (v) => { temperature = v; });
  Figures.button(row, "Write 1", () => write(1));
  Figures.button(row, "Write 200", () => write(200));
  Figures.button(row, "Clear", () => { box.value = ""; update(); });
  box.addEventListener("input", update);
  box.addEventListener("keydown", (event) => event.stopPropagation());  // the theme turns pages with arrows
  root.append(box, row, bars, text, controls);
  // What JAX computed from the same weights: the largest difference of a probability.
  const p = update();
  root.dataset.difference = Math.max(...p.map((v, k) => Math.abs(v - data.reference[k]))).toExponential(2);
});
