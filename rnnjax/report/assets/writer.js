// The network of a run, computed in the page: it reads what is typed or pasted, says what it expects, and writes.

/** Numbers of 16 bits as they stand in memory. */
function fromHalves(bits) {
  return Float32Array.from(bits, (b) => {
    const [sign, power, fraction] = [b >> 15 ? -1 : 1, (b >> 10) & 31, b & 1023];
    if (power === 31) return fraction ? NaN : sign * Infinity;
    return power === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (power - 15);
  });
}

/** Numbers of 8 bits, each times the scale of its column. */
function fromLevels(levels, scales) {
  return Float32Array.from(levels, (level, k) => (level - 128) * scales[k % scales.length]);
}

/** A matrix [rows, width] with its rows as columns. */
function turned(w, width) {
  const rows = w.length / width;
  return Float32Array.from(w, (_, k) => w[(k % rows) * width + Math.floor(k / rows)]);
}

/** out += a @ w, with w [rows, width]; zeros of a are skipped. */
function addProduct(out, a, w) {
  const width = out.length;
  for (let j = 0; j < a.length; j++) {
    const v = a[j];
    if (v !== 0) for (let k = 0, row = j * width; k < width; k++) out[k] += v * w[row + k];
  }
}

class Network {
  static async open(data, steps) {
    const network = new Network();
    const weights = async (packed) => {
      if (packed === null) return null;
      return packed.levels ? fromLevels(await unpack(packed.levels), await unpack(packed.scales)) : fromHalves(await unpack(packed));
    };
    const [V, embedding] = [data.vocabulary.length, await weights(data.embedding)];
    Object.assign(network, { V, steps, embedding, w_out: (await weights(data.w_out)) ?? turned(embedding, embedding.length / V), b_out: await weights(data.b_out) });
    network.layers = [];
    for (const layer of data.layers) {
      const wide = async (list) => Promise.all(list.map(unpack));
      network.layers.push({ ...layer, start: await wide(layer.start), own: await wide(layer.own), w_ih: await weights(layer.w_ih), w_hh: await weights(layer.w_hh), b: await weights(layer.b) });
    }
    network.clear();
    return network;
  }

  clear() {
    this.states = this.layers.map((layer) => layer.start.map((leaf) => Float32Array.from(leaf)));
    this.top = null;
  }

  read(symbol) {
    let x = null; // null: the symbol itself, one-hot
    if (this.embedding) {
      const size = this.embedding.length / this.V;
      x = this.embedding.subarray(symbol * size, (symbol + 1) * size);
    }
    this.layers.forEach((layer, depth) => {
      const [H, width] = [layer.size, layer.size * layer.gates];
      const zx = layer.b ? Float32Array.from(layer.b) : new Float32Array(width);
      if (x) addProduct(zx, x, layer.w_ih);
      else for (let k = 0; k < width; k++) zx[k] += layer.w_ih[symbol * width + k];
      const old = this.states[depth];
      const zh = layer.w_hh ? new Float32Array(width) : null;
      if (zh) addProduct(zh, old[layer.h], layer.w_hh);
      const seen = [];
      for (let g = 0; g < layer.gates; g++) {
        const [a, b] = [zx.subarray(g * H, (g + 1) * H), zh?.subarray(g * H, (g + 1) * H)];
        if (!zh) seen.push(a);
        else if (layer.summed[g]) seen.push(a.map((v, k) => v + b[k]));
        else seen.push(a, b);
      }
      const fresh = old.map(() => new Float32Array(H));
      const y = new Float32Array(H);
      this.steps[depth](H, layer.own, old, seen, fresh, y);
      this.states[depth] = fresh;
      x = y;
    });
    this.top = x;
  }

  /** Probabilities of the next symbol; those of unknown symbols are left out of what is written. */
  probabilities(temperature = 1, banned = null) {
    const logits = Float64Array.from(this.b_out);
    addProduct(logits, this.top, this.w_out);
    if (banned !== null) logits[banned] = -Infinity;
    const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const p = logits.map((l) => Math.exp((l - largest) / temperature));
    const total = p.reduce((a, b) => a + b, 0);
    return p.map((v) => v / total);
  }
}

const READ_AT_MOST = 2000;

/** Symbols of a text as numbers, and the text of numbers; at the byte level through UTF-8. */
function codecOf(run) {
  if (run.text.level === "byte") return { ids: (text) => Array.from(new TextEncoder().encode(text)), text: (ids) => new TextDecoder().decode(Uint8Array.from(ids)) };
  const number = new Map(run.writer.vocabulary.map((symbol, k) => [symbol, k]));
  return { ids: (text) => Array.from(text, (c) => number.get(c) ?? run.writer.unknown).filter((id) => id !== null && id !== undefined), text: (ids) => ids.map((id) => run.writer.vocabulary[id]).join("") };
}

async function showWriter() {
  const { run, index } = state;
  const box = byId("writer-box");
  if (run.writer.why) {
    byId("writer-about").textContent = `This network is not in the page: ${run.writer.why}.`;
    box.replaceChildren();
    return;
  }
  const network = await Network.open(run.writer, WRITERS[index]);
  if (state.run !== run) return;
  const codec = codecOf(run);
  for (const id of run.writer.prime) network.read(id);
  const reference = await unpack(run.writer.reference);
  const own = network.probabilities();
  const difference = own.reduce((most, p, k) => Math.max(most, Math.abs(p - reference[k])), 0);
  byId("writer-about").textContent =
    `The network runs in this page, with its weights in ${run.writer.bits} bits. Type or paste a text: each symbol is coloured by how much it surprised the network, and the bars say what it expects next. ` +
    `Its probabilities differ from those that JAX computed from the same weights by ${fixed(difference)} at most.`;
  box.dataset.difference = String(difference);
  const area = make("textarea", { rows: 4, "aria-label": "What the network reads", spellcheck: "false", id: "writer-text" });
  area.value = codec.text(run.writer.prime);
  const read = make("div", { class: "read", role: "img", "aria-label": "The text, coloured by surprise" });
  const bars = make("ol", { class: "expected", "aria-label": "Likeliest next symbols", "aria-live": "polite" });
  const heat = make("input", { type: "range", min: 0.1, max: 1.5, step: 0.1, value: 0.7, id: "writer-heat" });
  const shown = make("output", {}, "0.7");
  heat.addEventListener("input", () => (shown.textContent = heat.valueAsNumber.toFixed(1)));
  let ids = [];

  function update() {
    network.clear();
    ids = codec.ids(area.value).slice(-READ_AT_MOST);
    const losses = [];
    for (const id of ids) {
      losses.push(network.top ? -Math.log(Math.max(network.probabilities()[id], 1e-12)) : 0);
      network.read(id);
    }
    paintRead(losses);
  }

  function paintRead(losses) {
    const symbols = ids.map((id) => run.writer.vocabulary[id]);
    read.replaceChildren(...symbols.map((symbol, k) => make("span", { class: sequential(losses[k] / 5), title: k ? `${fixed(losses[k], 2)} nats` : "nothing came before" }, symbol === "\n" ? "↵\n" : symbol)));
    read.scrollTop = read.scrollHeight;
    if (!network.top) {
      bars.replaceChildren();
      return;
    }
    const order = Array.from(network.probabilities(), (p, k) => [p, k]).sort((a, b) => b[0] - a[0]).slice(0, 6);
    bars.replaceChildren(...order.map(([p, k]) => make("li", {}, make("code", {}, named(run.writer.vocabulary[k])), make("i", { "aria-hidden": "true", style: `width:${(100 * p).toFixed(1)}%` }), make("em", {}, percent(p)))));
  }

  function write(length) {
    update();
    if (!network.top) network.read(run.writer.prime[0]);
    for (let n = 0; n < length; n++) {
      const p = network.probabilities(heat.valueAsNumber, run.writer.unknown);
      let [at, k] = [Math.random(), 0];
      while (k < p.length - 1 && (at -= p[k]) > 0) k++;
      ids.push(k);
      network.read(k);
    }
    area.value = codec.text(ids);
    update();
    area.scrollTop = area.scrollHeight;
  }

  const button = (name, act) => make("button", { type: "button", on: { click: act } }, name);
  area.addEventListener("input", update);
  box.replaceChildren(
    area,
    make("div", { class: "tool-row" }, button("Write 1", () => write(1)), button("Write 200", () => write(200)), button("Clear", () => { area.value = ""; update(); }), make("label", { class: "field", for: "writer-heat" }, "Temperature"), heat, shown),
    make("div", { class: "writing" }, read, bars),
  );
  update();
}
