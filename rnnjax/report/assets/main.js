// Puts the page together, and listens.

const MODES = { unit: "unit", surprise: "surprise", difference: "difference to" };

/** Runs whose text is the same, so that symbol can be held against symbol. */
function sameText(a, b) {
  return a.count === b.count && a.symbols.every((symbol, k) => symbol === b.symbols[k]);
}

function showModes() {
  const others = loaded.map((run, k) => [k, run]).filter(([k, run]) => k !== state.index && sameText(run, state.run));
  const choices = [["unit", "a unit"], ["surprise", "surprise (loss)", "How many nats each symbol costs"]];
  for (const [k, run] of others) choices.push([`difference-${k}`, `surprise less ${run.name}'s`, `Where this run is better or worse than ${run.name}`]);
  if (state.mode === "difference" && !others.some(([k]) => k === state.other)) state.mode = "surprise";
  const chosen = state.mode === "difference" ? `difference-${state.other}` : state.mode;
  fillChips(byId("mode"), "mode", choices, chosen, (value) => {
    state.mode = value.split("-")[0];
    if (state.mode === "difference") state.other = Number(value.split("-")[1]);
    ranking?.mark();
    overview?.mark();
    paint();
  });
}

async function showRun(index) {
  state.index = index;
  state.run = await load(index);
  byId("title").replaceChildren(several ? `${shared.runs.length} runs ` : `${state.run.name} `, make("small", {}, "rnnjax report"));
  showFacts();
  showText();
  settleLabel();
  showModes();
  showUnitTools();
  showRanking();
  showUnits();
  showTraining();
  showGradient();
  showGates();
  showLyapunov();
  showSamples();
  await showWriter();
  await paint();
}

/** Shows a unit in the text where its values are here, and its row in the table of all units where they are not. */
function goTo(name) {
  if (state.run.units[name]) {
    chooseUnit(name);
    byId("text").scrollIntoView();
    return;
  }
  const leaf = state.run.leaves.find((one) => one.name === leafOf(name));
  byId("unit-about").hidden = false;
  byId("unit-about").textContent = leaf && numberOf(name) < leaf.size
    ? `The values of ${name} are not in this page: rnnjax report ${state.run.name} --units ${name} puts them in. It has mean ${fixed(leaf.mean[numberOf(name)])} and deviation ${fixed(leaf.deviation[numberOf(name)])}.`
    : `This network has no unit ${name}; there are ${state.run.leaves.map((one) => `${one.name}.0 to ${one.size - 1}`).join(", ")}.`;
  byId("text").scrollIntoView();
}

function showComparison() {
  const runs = loaded;
  byId("compare").hidden = false;
  const loss = (run) => run.training.done?.val_loss ?? Math.min(...run.training.eval.val_loss.filter((v) => v !== null), Infinity);
  const minutes = (run) => Math.max(...run.training.train.seconds, ...run.training.eval.seconds, 0) / 60;
  const number = (name, value, digits = 3, title = undefined) => ({ name, number: true, title, value, cell: (run) => fixed(value(run), digits) });
  sortableTable(byId("compare-table"), {
    caption: "The runs",
    columns: [
      { name: "run", value: (run) => run.name, cell: (run) => make("button", { type: "button", class: "pick", title: `Show ${run.name}` }, run.name) },
      { name: "network", value: (run) => run.facts.network },
      { name: "parameters", number: true, value: (run) => Number(run.facts.parameters.replaceAll(",", "")), cell: (run) => run.facts.parameters },
      number("validation", loss, 3, "Nats a symbol"),
      number("bits", (run) => loss(run) / Math.LN2, 3, "Bits a symbol"),
      number("text above", (run) => run.mean, 3, "Nats a symbol of the text in this page"),
      { name: "symbols seen", number: true, value: (run) => run.training.train.symbols.at(-1) ?? 0, cell: (run) => short(run.training.train.symbols.at(-1) ?? 0) },
      number("minutes", minutes, 1),
      number("cut off, %", (run) => (run.gradient ? 100 * run.gradient.lost : null), 1, "Share of the gradient that the cuts between chunks take"),
      number("largest exponent", (run) => run.lyapunov?.exponents[0] ?? null, 4, "Lyapunov, nats a step"),
    ],
    rows: runs,
    canPick: () => true,
    pick: (run) => chooseRun(runs.indexOf(run)),
    isOn: (run) => run === state.run,
  });
  const line = (run, k, x, y, more = {}) => ({ name: run.name, x, y, color: k, dash: k % DASHES.length, ...more });
  const flows = runs.filter((run) => run.gradient);
  const spectra = runs.filter((run) => run.lyapunov);
  byId("compare-charts").replaceChildren(
    lineChart({ title: "Validation loss", x: trainingAxis(), y: { label: "nats a symbol", pad: true }, series: runs.map((run, k) => line(run, k, overSymbols(run.training.eval), run.training.eval.val_loss, { dots: k })) }),
    ...(flows.length ? [lineChart({ title: "Gradient by lag", x: { label: "lag k, steps" }, y: { label: "relative to lag 1", log: true, floor: 1e-12 }, rules: [...new Set(flows.map((run) => run.gradient.chunk_len))].map((x) => ({ x, name: `cut at ${x}` })), series: flows.map((run) => line(run, runs.indexOf(run), run.gradient.lags, relative(run.gradient.norm))) })] : []),
    ...(spectra.length ? [lineChart({ title: "Lyapunov exponents", x: { label: "rank" }, y: { label: "nats a step", pad: true }, rules: [{ y: 0, name: "" }], series: spectra.map((run) => line(run, runs.indexOf(run), run.lyapunov.exponents.map((_, k) => k + 1), run.lyapunov.exponents, { dots: runs.indexOf(run) })) })] : []),
  );
}

async function chooseRun(index) {
  checkChip(byId("run-switch"), String(index));
  await showRun(index);
  showComparison();
}

function listen() {
  byId("theme").addEventListener("change", (event) => window.rnnjaxTheme(event.target.value));
  byId("unit").addEventListener("change", (event) => chooseUnit(event.target.value));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("goto").addEventListener("submit", (event) => {
    event.preventDefault();
    goTo(byId("goto-name").value.trim());
  });
  byId("goto-line").addEventListener("submit", (event) => {
    event.preventDefault();
    const line = Math.min(lineOf.length, Math.max(1, Number.parseInt(byId("goto-line-number").value, 10) || 1));
    byId("goto-line-number").value = String(line);
    reader.scrollTop = marks[lineOf[line - 1]].offsetTop - reader.clientHeight / 4;
    moveTo(lineOf[line - 1]);
  });
  byId("label").addEventListener("change", (event) => {
    state.label = event.target.value;
    showRanking();
    paint();
  });
  byId("underline").addEventListener("change", (event) => {
    state.underline = event.target.checked;
    paint();
  });
  for (const id of ["units-leaf", "units-included", "units-still"]) byId(id).addEventListener("change", showOverview);
  const keys = { n: () => step(1), p: () => step(-1), v: () => nextChip(byId("leaf")), l: () => nextChip(byId("layer")), c: () => nextChip(byId("mode")) };
  document.addEventListener("keydown", (event) => {
    const inField = event.target.closest?.("select, input:not([type=radio]):not([type=checkbox]), textarea, .chart");
    if (event.ctrlKey || event.metaKey || event.altKey || inField || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  listenToText();
}

function showNavigation() {
  const links = [...document.querySelectorAll("main section h2")].filter((title) => !title.parentElement.hidden);
  byId("nav").replaceChildren(...links.map((title) => make("a", { href: `#${title.parentElement.id}` }, title.textContent)));
}

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old: it cannot unpack compressed data. Use one of 2023 or later.");
  addScaleStyles();
  addTerms();
  listen();
  if (several) {
    byId("run-switch").hidden = false;
    fillChips(byId("run-switch"), "run", shared.runs.map((name, k) => [String(k), name]), "0", (k) => chooseRun(Number(k)));
    for (let k = 0; k < shared.runs.length; k++) await load(k);
  }
  await showRun(0);
  if (several) showComparison();
  showNavigation();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  byId("problem").textContent = `The page cannot be shown: ${error.message}`;
  byId("problem").hidden = false;
  throw error;
});
