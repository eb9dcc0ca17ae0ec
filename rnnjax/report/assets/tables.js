// Tables that are sorted by the buttons in their heads, page by page where they are long.

/**
 * A sortable table in a box.
 *
 * spec: caption, columns ([{name, title, number, value(row), cell(row)}]), rows, sort ([column, direction]), size (rows a
 * page), pick(row), canPick(row), isOn(row).
 */
function sortableTable(box, spec) {
  let [column, direction] = spec.sort ?? [-1, 1];
  let first = 0;
  const heads = spec.columns.map((one, k) => {
    const button = make("button", { type: "button", title: one.title ?? `Sort by ${one.name}` }, one.name);
    button.addEventListener("click", () => {
      direction = column === k ? -direction : one.number ? -1 : 1;
      column = k;
      first = 0;
      fill();
    });
    return make("th", { scope: "col", class: one.number ? "number" : "" }, button);
  });
  const body = make("tbody");
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  table.prepend(make("caption", { class: "sr" }, spec.caption));
  const size = spec.size ?? Infinity;
  const where = make("span", { role: "status" });
  const back = make("button", { type: "button", on: { click: () => turn(-size) } }, "Previous page");
  const forth = make("button", { type: "button", on: { click: () => turn(size) } }, "Next page");
  box.replaceChildren(table);
  if (spec.rows.length > size) box.append(make("div", { class: "pager" }, back, forth, where));

  function turn(by) {
    first = Math.max(0, Math.min(first + by, Math.floor((spec.rows.length - 1) / size) * size));
    fill();
  }

  function sorted() {
    if (column < 0) return spec.rows;
    const key = spec.columns[column].value;
    const missing = (v) => v === null || v === undefined || Number.isNaN(v);
    return spec.rows
      .map((row, k) => [key(row), k, row])
      .sort(([a, i], [b, j]) => {
        if (missing(a) || missing(b)) return missing(a) - missing(b) || i - j;
        const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return order * direction || i - j;
      })
      .map((entry) => entry[2]);
  }

  function fill() {
    heads.forEach((head, k) => {
      if (k === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const rows = sorted().slice(first, first + size);
    body.replaceChildren(
      ...rows.map((row) => {
        const can = spec.canPick?.(row) ?? false;
        const line = make("tr", { class: can ? "can" : "" });
        for (const one of spec.columns) {
          const content = one.cell ? one.cell(row) : one.value(row);
          line.append(make("td", { class: one.number ? "number" : "" }, ...(Array.isArray(content) ? content : [content])));
        }
        line.row = row;
        if (can) line.addEventListener("click", () => spec.pick(row));
        return line;
      }),
    );
    back.disabled = first === 0;
    forth.disabled = first + size >= spec.rows.length;
    where.textContent = `${count(first + 1)} to ${count(Math.min(first + size, spec.rows.length))} of ${count(spec.rows.length)}`;
    mark();
  }

  function mark() {
    for (const line of body.children) {
      const on = spec.isOn?.(line.row) ?? false;
      line.classList.toggle("on", on);
      line.querySelector("button.pick")?.setAttribute("aria-pressed", String(on));
    }
  }

  fill();
  return { mark };
}

/** The name of a unit: a button that colours the text, or plain text for one whose values are not in the page. */
function unitCell(run, name) {
  if (run.units[name]) return make("button", { type: "button", class: "pick", title: `Colour the text by ${name}` }, name);
  return make("span", { class: "absent", title: `Its values are not in this page; rnnjax report ${run.name} --units ${name} puts them in` }, name);
}
