// The text: one element a symbol, coloured by a class; a place in it, and what is known there.

const reader = byId("reader");
const tip = byId("tip");
let marks = []; // elements by position
let lineOf = []; // positions of the first symbol of each line of text

function showText() {
  const { run } = state;
  const lines = [];
  let line = make("div");
  marks = new Array(run.count);
  lineOf = [0];
  const bytes = run.text.level === "byte";
  run.symbols.forEach((symbol, k) => {
    const mark = document.createElement("span");
    mark.place = k;
    const parts = Array.from(symbol);
    if (parts.every((c) => c === "\n")) mark.textContent = "↵".repeat(parts.length);
    else if (bytes && (symbol > "~" || symbol < " ") && symbol !== "\t") mark.textContent = hex(symbol);
    else mark.textContent = parts.map((c) => (c !== "\t" && unseen(c) ? hex(c) : c)).join("");
    if (mark.textContent !== symbol) mark.className = "odd";
    mark.odd = mark.className;
    marks[k] = mark;
    line.append(mark);
    if (symbol.includes("\n")) {
      lines.push(line);
      line = make("div");
      lineOf.push(k + 1);
    }
  });
  if (line.childElementCount) lines.push(line);
  else lineOf.pop();
  reader.replaceChildren(...lines);
  reader.scrollTop = 0;
  byId("text-about").textContent =
    `${run.text.name}: ${count(run.count)} symbols, ${fixed(run.mean)} nats (${fixed(run.mean / Math.LN2)} bits) a symbol here. ` +
    "Hover over a character, tap it, or walk with the arrow keys: its value, its surprise, and what the network expects next.";
  moveTo(-1);
}

let painting = 0;

/** Colours the text by what is chosen now; the latest call wins while values are unpacked. */
async function paint() {
  const turn = ++painting;
  const { run, mode } = state;
  for (const id of ["unit-tools", "unit-about"]) byId(id).hidden = mode !== "unit";
  let [classes, texts] = [null, null];
  if (mode === "unit" && state.unit) {
    const unit = run.units[state.unit];
    const values = await unitValues(run, state.unit);
    if (turn !== painting) return;
    classes = Array.from(values, (v) => diverging((v - unit.middle) / unit.reach));
    texts = ["d", [short(unit.middle - unit.reach), short(unit.middle), short(unit.middle + unit.reach)], `${state.unit} after each symbol`];
  } else if (mode === "surprise") {
    const most = Math.max(quantile(run.surprise, 0.99), 1e-3);
    classes = Array.from(run.surprise, (v) => sequential(v / most));
    texts = ["s", ["0", "", fixed(most, 1)], "nats that each symbol surprises by, −log p"];
  } else if (mode === "difference") {
    const other = await load(state.other);
    if (turn !== painting) return;
    const values = run.surprise.map((v, k) => v - other.surprise[k]);
    const reach = Math.max(quantile(values.map(Math.abs), 0.99), 1e-3);
    classes = Array.from(values, (v) => diverging(v / reach));
    texts = ["d", [`−${fixed(reach, 1)} better here`, "0", `${fixed(reach, 1)} better in ${other.name}`], `surprise here less that in ${other.name}, nats`];
  }
  const label = state.underline && currentLabel();
  const under = label && label.binary ? label.values : null;
  for (let k = 0; k < marks.length; k++) {
    let name = classes ? classes[k] : "";
    if (under && under[k]) name += " u";
    if (marks[k].odd) name += " odd";
    marks[k].className = name;
  }
  if (state.at >= 0) marks[state.at].classList.add("at");
  byId("legend").replaceChildren(...(texts ? legend(...texts) : []));
  if (!tip.hidden) showTip(state.at);
  document.body.dataset.painted = `${state.index} ${mode} ${mode === "unit" ? state.unit : ""}`.trim();
}

/** Moves the place in the text; -1 for none. */
function moveTo(at, scroll = false) {
  if (state.at >= 0) marks[state.at]?.classList.remove("at");
  state.at = at;
  if (at < 0) {
    tip.hidden = true;
    return;
  }
  marks[at].classList.add("at");
  if (scroll) marks[at].scrollIntoView({ block: "nearest", behavior: "instant" });
  showTip(at);
}

async function showTip(at) {
  const { run } = state;
  const rows = [];
  if (state.unit) {
    const values = await unitValues(run, state.unit);
    if (at !== state.at || run !== state.run) return;
    rows.push([`${state.unit} after it`, fixed(values[at])]);
  }
  if (at > 0) {
    rows.push(["surprise", `${fixed(run.surprise[at])} nats`], ["its probability was", percent(Math.exp(-run.surprise[at]), 2)]);
  } else rows.push(["surprise", "nothing came before"]);
  if (state.mode === "difference" && at > 0) rows.push([`surprise in ${loaded[state.other].name}`, `${fixed(loaded[state.other].surprise[at])} nats`]);
  const label = currentLabel();
  if (label) rows.push([label.name, label.binary ? (label.values[at] ? "holds" : "does not hold") : fixed(label.values[at], 0)]);
  const pairs = rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  const expected = make("ol", { "aria-label": "Likeliest next symbols" });
  const next = run.ids[at + 1];
  for (let k = 0; k < run.width; k++) {
    const id = run.next[at * run.width + k];
    const share = run.probs[at * run.width + k] / 65535;
    const hit = at + 1 < run.count && id === next;
    const bar = make("i", { "aria-hidden": "true", style: `width:${(100 * share).toFixed(1)}%` });
    expected.append(make("li", { class: hit ? "hit" : "" }, make("code", {}, named(run.text.symbols[id]) + (hit ? " ✓" : "")), bar, make("em", {}, percent(share))));
  }
  const head = make("div", { class: "what" }, make("b", {}, named(run.symbols[at])), make("span", { class: "soft" }, placeText(at)));
  tip.replaceChildren(head, make("dl", {}, ...pairs), make("div", { class: "soft" }, "expected next (✓ came)"), expected);
  tip.hidden = false;
  placeTip();
}

/** Beside its character; nowhere if that is out of sight. */
function placeTip() {
  if (tip.hidden) return;
  const box = marks[state.at].getBoundingClientRect();
  const frame = reader.getBoundingClientRect();
  if (box.bottom < Math.max(0, frame.top) || box.top > Math.min(window.innerHeight, frame.bottom)) {
    tip.hidden = true;
    return;
  }
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const below = box.bottom + 10 + height < window.innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left + 14, window.innerWidth - width - 12))}px`;
  tip.style.top = `${Math.max(8, below ? box.bottom + 10 : box.top - height - 10)}px`;
}

function lineAt(at) {
  let [low, high] = [0, lineOf.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (lineOf[middle] <= at) low = middle;
    else high = middle - 1;
  }
  return low;
}

const placeText = (at) => `line ${count(lineAt(at) + 1)}, place ${count(at - lineOf[lineAt(at)] + 1)}`;

function walk(key) {
  const last = state.run.count - 1;
  if (state.at < 0) return 0;
  const line = lineAt(state.at);
  const column = state.at - lineOf[line];
  const into = (to) => Math.min(lineOf[to] + column, to + 1 < lineOf.length ? lineOf[to + 1] - 1 : last);
  switch (key) {
    case "ArrowRight": return Math.min(last, state.at + 1);
    case "ArrowLeft": return Math.max(0, state.at - 1);
    case "ArrowDown": return into(Math.min(line + 1, lineOf.length - 1));
    case "ArrowUp": return into(Math.max(line - 1, 0));
    case "PageDown": return into(Math.min(line + 15, lineOf.length - 1));
    case "PageUp": return into(Math.max(line - 15, 0));
    case "Home": return lineOf[line];
    case "End": return line + 1 < lineOf.length ? lineOf[line + 1] - 1 : last;
    default: return null;
  }
}

function listenToText() {
  reader.addEventListener("pointermove", (event) => {
    const place = event.target.place;
    if (place !== undefined && place !== state.at && event.pointerType === "mouse") moveTo(place);
  });
  reader.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") tip.hidden = true;
  });
  reader.addEventListener("click", (event) => {
    if (event.target.place !== undefined) moveTo(event.target.place);
  });
  reader.addEventListener("focusout", () => (tip.hidden = true));
  reader.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to = walk(event.key);
    if (!["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "PageDown", "PageUp", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    moveTo(to, true);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });
  window.addEventListener("scroll", placeTip, { passive: true, capture: true });
}
