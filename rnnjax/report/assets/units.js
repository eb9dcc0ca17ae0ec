// Choosing a unit: layer, values (h, c, gates), number; the ranking for a label; the table of all units.

const WORDS = { state: "state", gate: "gate", candidate: "candidate, −1 to 1", value: "named value", pre: "before its nonlinearity" };
let ranking = null;
let overview = null;

const currentLabel = () => state.run.labels.find((label) => label.name === state.label);

/** Keeps a label that the run has, else takes the first that some unit tells better than chance. */
function settleLabel() {
  if (!currentLabel()) state.label = (state.run.labels.find((label) => label.rows[0][2] > label.bar) ?? state.run.labels[0])?.name ?? null;
}

const unitsOf = (leaf) => Object.keys(state.run.units).filter((name) => leafOf(name) === leaf);

function showUnitTools() {
  const { run } = state;
  const names = Object.keys(run.units);
  if (!run.units[state.unit]) state.unit = currentLabel()?.rows.map((row) => row[0]).find((name) => run.units[name]) ?? names[0];
  const leaves = [...new Set([...run.leaves.map((leaf) => leaf.name), ...names.map(leafOf)])];
  const layers = [...new Set(leaves.map(layerOf))];
  const leaf = leafOf(state.unit);
  fillChips(byId("layer"), "layer", layers.map((layer) => [layer, layer, "", !names.some((name) => layerOf(name) === layer)]), layerOf(leaf), chooseLayer);
  const own = leaves.filter((name) => layerOf(name) === layerOf(leaf));
  fillChips(byId("leaf"), "leaf", own.map((name) => [name, name.slice(name.indexOf(".") + 1), WORDS[kindOf(name)], !unitsOf(name).length]), leaf, (name) => chooseUnit(unitsOf(name)[0]));
  fillSelect(byId("unit"), unitsOf(leaf).map((name) => [name, name]), state.unit);
  describeUnit();
}

const kindOf = (leaf) => state.run.leaves.find((one) => one.name === leaf)?.kind ?? "pre";

function describeUnit() {
  const { run, unit } = state;
  const leaf = leafOf(unit);
  const why = run.units[unit].why;
  const size = run.leaves.find((one) => one.name === leaf)?.size;
  const all = Object.keys(run.units).length;
  byId("unit-about").textContent =
    `${unit}${why.length ? ` (${why.slice(0, 4).join(", ")})` : ""}. ` +
    (all < run.total
      ? `This page holds ${count(unitsOf(leaf).length)}${size ? ` of the ${count(size)}` : ""} units of ${leaf}, ${count(all)} of ${count(run.total)} in all; --units ${leaf}.NUMBER puts others in, --megabytes makes room.`
      : `This page holds all ${count(run.total)} units.`);
}

function chooseUnit(name, show = false) {
  state.unit = name;
  if (state.mode !== "unit") {
    state.mode = "unit";
    checkChip(byId("mode"), "unit");
  }
  const held = document.activeElement?.closest?.("#layer, #leaf");
  showUnitTools();
  held?.querySelector("input:checked")?.focus();
  ranking?.mark();
  overview?.mark();
  if (show && window.matchMedia("(max-width: 980px)").matches) byId("text").scrollIntoView();
  paint();
}

function chooseLayer(layer) {
  const [leaf, number] = [leafOf(state.unit), numberOf(state.unit)];
  const wanted = `${layer}${leaf.slice(leaf.indexOf("."))}`;
  const names = unitsOf(wanted).length ? unitsOf(wanted) : Object.keys(state.run.units).filter((name) => layerOf(name) === layer);
  chooseUnit(names.find((name) => numberOf(name) === number) ?? names[0]);
}

function step(by) {
  const names = unitsOf(leafOf(state.unit));
  chooseUnit(names[(names.indexOf(state.unit) + by + names.length) % names.length]);
}

/** The next of the radio buttons of a fieldset that can be chosen. */
function nextChip(fieldset) {
  const inputs = [...fieldset.querySelectorAll("input:not(:disabled)")];
  const next = inputs[(inputs.findIndex((input) => input.checked) + 1) % inputs.length];
  next?.click();
}

function showRanking() {
  const { run } = state;
  const label = currentLabel();
  byId("labels").hidden = !label;
  if (!label) return;
  fillSelect(byId("label"), run.labels.map((one) => [one.name, one.name]), state.label);
  byId("underline").disabled = !label.binary;
  byId("label-about").textContent =
    `${label.description ? `${label.description[0].toUpperCase()}${label.description.slice(1)}; ` : ""}` +
    (label.binary ? `holds after ${percent(label.share)} of the symbols.` : `mean ${fixed(label.share)}.`);
  const score = label.binary ? "AUC" : "correlation";
  const columns = [
    { name: "unit", value: (row) => row[0], cell: (row) => unitCell(run, row[0]) },
    { name: "is", title: "Whether the unit is high or low where the label holds, or is high", value: (row) => row[1], cell: (row) => (row[1] > 0 ? "high" : "low") },
    { name: score, number: true, title: "On the second half of the text, which chose nothing", value: (row) => row[2], cell: (row) => decimals(row[2]) },
    { name: "first half", number: true, title: "On the first half, by which units are ranked", value: (row) => row[3], cell: (row) => decimals(row[3]) },
    ...(label.binary ? [{ name: "accuracy", number: true, title: "Balanced, on the second half, at the threshold that the first half chose", value: (row) => row[4], cell: (row) => decimals(row[4]) }, { name: "threshold", number: true, value: (row) => row[5], cell: (row) => decimals(row[5]) }] : []),
    { name: "p", number: true, title: "Share of shifted labels on which the best of all units does as well", value: (row) => row[6], cell: (row) => pText(row[6], label.shifts) },
  ];
  ranking = sortableTable(byId("ranking"), {
    caption: `Units that tell ${label.name}`,
    columns,
    rows: label.rows,
    canPick: (row) => Boolean(run.units[row[0]]),
    pick: (row) => chooseUnit(row[0], true),
    isOn: (row) => state.mode === "unit" && row[0] === state.unit,
  });
  byId("label-note").textContent =
    `The first half of the text ranks, the second half scores. Bar: ${fixed(label.bar)}, the best of all units on ${label.shifts} shifted labels; what is not above it may be chance.` +
    (label.binary ? ` AUC exact to ${fixed(Math.max(...label.rows.map((row) => row[7])), 4)}.` : "") +
    (run.left_out.length ? ` In half of this text always the same, so left out: ${run.left_out.join(", ")}.` : "");
}

/** What lies below the least that so many controls can tell is not told. */
const pText = (p, shifts) => (p <= 1.001 / (shifts + 1) ? `≤ ${fixed(1 / (shifts + 1), 2)}` : fixed(p, 2));

const HARDLY = 0.01; // deviation, below which a unit hardly changes

function allUnits(run) {
  if (run.rows) return run.rows;
  run.rows = run.leaves.flatMap((leaf) =>
    Array.from({ length: leaf.size }, (_, k) => {
      const label = leaf.best ? run.labels[leaf.best[k]] : null;
      return {
        unit: `${leaf.name}.${k}`, leaf: leaf.name, mean: leaf.mean[k], deviation: leaf.deviation[k],
        left: leaf.left?.[k] ?? null, right: leaf.right?.[k] ?? null,
        label: label?.name ?? "", score: label ? leaf.score[k] : null,
        strength: label ? (label.binary ? 2 * leaf.score[k] - 1 : leaf.score[k]) : null,
      };
    }),
  );
  return run.rows;
}

function showOverview() {
  const { run } = state;
  const [leaf, only] = [byId("units-leaf").value, byId("units-included").checked];
  const chosen = allUnits(run).filter((row) => (!leaf || row.leaf === leaf) && (!only || run.units[row.unit]));
  const rows = byId("units-still").checked ? chosen : chosen.filter((row) => row.deviation >= HARDLY);
  byId("units-still-count").textContent = `also the ${count(chosen.filter((row) => row.deviation < HARDLY).length)} that hardly change`;
  const gates = rows.some((row) => row.left !== null);
  overview = sortableTable(byId("units-table"), {
    caption: "All units",
    size: 25,
    sort: [run.labels.length ? 4 : 2, -1],
    columns: [
      { name: "unit", value: (row) => row.unit, cell: (row) => unitCell(run, row.unit) },
      { name: "mean", number: true, value: (row) => row.mean, cell: (row) => decimals(row.mean) },
      { name: "deviation", number: true, title: "Standard deviation over the text", value: (row) => row.deviation, cell: (row) => decimals(row.deviation) },
      { name: "tells best", title: "The label that the unit tells best", value: (row) => row.label },
      { name: "score", number: true, title: "On the second half: AUC, or correlation of a label that is a number; sorted by distance from chance", value: (row) => row.strength, cell: (row) => decimals(row.score) },
      ...(gates ? [{ name: "below 0.1", number: true, title: "Share of time that the gate is shut", value: (row) => row.left, cell: (row) => (row.left === null ? "" : percent(row.left)) }, { name: "above 0.9", number: true, title: "Share of time that the gate is open", value: (row) => row.right, cell: (row) => (row.right === null ? "" : percent(row.right)) }] : []),
    ],
    rows,
    canPick: (row) => Boolean(run.units[row.unit]),
    pick: (row) => {
      chooseUnit(row.unit);
      byId("text").scrollIntoView();
    },
    isOn: (row) => state.mode === "unit" && row.unit === state.unit,
  });
}

function showUnits() {
  const { run } = state;
  fillSelect(byId("units-leaf"), [["", "all"], ...run.leaves.map((leaf) => [leaf.name, `${leaf.name} (${WORDS[leaf.kind]})`])], "");
  const held = Object.keys(run.units).length;
  byId("units-about").textContent =
    `Over this text, from ${count(run.total)} units. The values of ${held === run.total ? "all" : count(held)} are in this page; a click on one colours the text.`;
  const notes = [run.dead.count ? `${count(run.dead.count)} units of the state hardly ever change: ${run.dead.first.join(", ")}${run.dead.count > run.dead.first.length ? ", …" : ""}.` : "No unit of the state is dead."];
  if (run.redundant.count) {
    notes.push(`${count(run.redundant.count)} pairs of one leaf are nearly copies: ${run.redundant.closest.map(([a, b, r]) => `${a} and ${b} (${fixed(r, 2)})`).join(", ")}${run.redundant.count > run.redundant.closest.length ? ", …" : ""}.`);
  }
  byId("units-note").textContent = notes.join(" ");
  showOverview();
}
