// Helpers, the data of the runs, and the state of the page.

const byId = (id) => document.getElementById(id);

/** An element with properties, and children that are elements or texts; texts are never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name in element && typeof value !== "string") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function drawn(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const ARRAYS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };

/** The typed array of "dtype:base64 of zlib". */
async function unpack(packed) {
  const [kind, data] = [packed.slice(0, packed.indexOf(":")), packed.slice(packed.indexOf(":") + 1)];
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new ARRAYS[kind](await new Response(stream).arrayBuffer());
}

const shared = JSON.parse(byId("shared").textContent);
const several = shared.runs.length > 1;
const loaded = [];

/** The data of a run, with the arrays that are always needed unpacked; those of units come when they are shown. */
async function load(index) {
  if (loaded[index]) return loaded[index];
  const run = JSON.parse(byId(`run-${index}`).textContent);
  for (const name of ["ids", "surprise", "next", "probs"]) run[name] = await unpack(run[name]);
  for (const label of run.labels) label.values = await unpack(label.values);
  for (const leaf of run.leaves) {
    for (const name of ["mean", "deviation", "left", "right", "best", "score"]) {
      if (leaf[name]) leaf[name] = await unpack(leaf[name]);
    }
  }
  run.symbols = Array.from(run.ids, (id) => run.text.symbols[id]);
  loaded[index] = run;
  return run;
}

/** The values of a unit, one a symbol. */
async function unitValues(run, name) {
  const unit = run.units[name];
  if (!unit.floats) {
    const levels = await unpack(unit.values);
    const step = (unit.high - unit.low) / 255;
    unit.floats = Float32Array.from(levels, (level) => unit.low + level * step);
  }
  return unit.floats;
}

const state = { index: 0, run: null, mode: "unit", unit: null, label: null, underline: false, at: -1, axis: "symbols" };
state.other = several ? 1 : 0;

const leafOf = (name) => name.slice(0, name.lastIndexOf("."));
const layerOf = (name) => name.slice(0, name.indexOf("."));
const numberOf = (name) => Number(name.slice(name.lastIndexOf(".") + 1));

function fixed(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value < 0 ? "−∞" : "∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return exponent(value, digits - 1);
  return value.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : digits).replace("-", "−");
}

/** For columns of tables, where exponents would be hard to compare. */
const decimals = (value, digits = 3) => (Number.isFinite(value) && Math.abs(value) < 1e5 ? value.toFixed(digits).replace("-", "−") : fixed(value));

const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const raised = (power) => String(power).replace(/\d/g, (d) => RAISED[d]).replace("-", "⁻");

function exponent(value, digits = 1) {
  const [mantissa, power] = value.toExponential(digits).split("e");
  return `${mantissa.replace("-", "−")}·10${raised(Number(power))}`;
}

function short(value) {
  for (const [size, letter] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${letter}`;
  }
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;
const count = (value) => value.toLocaleString("en-US");

const CONTROL = { "\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣" };

/** A symbol as it is named in words: blanks and what cannot be seen get a sign. */
function named(symbol) {
  return Array.from(symbol, (c) => CONTROL[c] ?? (unseen(c) ? hex(c) : c)).join("");
}

const unseen = (c) => /[\p{Cc}\p{Cs}\p{Co}\p{Cn}\u00ad\u200b-\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/u.test(c);
const hex = (c) => c.codePointAt(0).toString(16).toUpperCase().padStart(2, "0");

/** Radio buttons that look like chips, in a fieldset; choices are [value, text, title, disabled]. */
function fillChips(fieldset, name, choices, chosen, act) {
  for (const old of fieldset.querySelectorAll("label")) old.remove();
  for (const [value, text, title, disabled] of choices) {
    const input = make("input", { type: "radio", name, value, checked: value === chosen, disabled: Boolean(disabled) });
    input.addEventListener("change", () => act(value));
    fieldset.append(make("label", title ? { title } : {}, input, make("span", {}, text)));
  }
}

function checkChip(fieldset, value) {
  for (const input of fieldset.querySelectorAll("input")) input.checked = input.value === value;
}

function fillSelect(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, text]) => make("option", { value }, text)));
  if (chosen !== undefined && chosen !== null) select.value = chosen;
}
