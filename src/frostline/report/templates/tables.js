// Sorts tables by a button in each heading, and unfolds everything for paper. The page says everything without it.
(() => {
  const NUMBER = /^([<>±]?)\s*([+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?)(?=$|[%\s–,:])/i;
  const SECONDS = { ms: 0.001, s: 1, min: 60, h: 3600 };
  const ENDLESS = { "infinite": Infinity, "not finite": Infinity, "-infinite": -Infinity };
  const words = new Intl.Collator("en", { numeric: true });

  // What a cell says first; what stands in small print below it does not count.
  const said = (cell) => {
    if (!cell) return "";
    let text = "";
    for (const node of cell.childNodes) {
      if (node.nodeType === Node.TEXT_NODE || node.matches("code, b, .mode, .name")) text += node.textContent;
    }
    return (text.trim() || cell.textContent.trim()).replaceAll("\u2212", "-").replace(/\s+/g, " ");
  };

  // Figures as the page prints them; null where there is none.
  const figure = (text) => {
    if (text in ENDLESS) return ENDLESS[text];
    const found = NUMBER.exec(text);
    if (!found) return null;
    const times = [...text.matchAll(/([\d.,]+) (ms|s|min|h)\b/g)];
    const value = times.length
      ? times.reduce((sum, [, number, unit]) => sum + Number(number.replaceAll(",", "")) * SECONDS[unit], 0)
      : Number(found[2].replaceAll(",", ""));
    const nudge = 1e-9 * Math.max(Math.abs(value), 1e-9);
    return found[1] === "<" ? value - nudge : found[1] === ">" ? value + nudge : value;
  };

  // A function that compares two rows by what they say in a column; what says nothing comes last, either way.
  const comparison = (rows, column, way) => {
    const texts = new Map(rows.map((row) => [row, said(row.cells[column])]));
    const values = new Map(rows.map((row) => [row, figure(texts.get(row))]));
    const numbers = rows.some((row) => values.get(row) !== null)
      && rows.every((row) => values.get(row) !== null || !/^[\d.]/.test(texts.get(row)));
    return (a, b) => {
      if (numbers) {
        const [x, y] = [values.get(a), values.get(b)];
        if (x !== null && y !== null) return x === y ? 0 : way * (x < y ? -1 : 1);
        if (x !== null || y !== null) return x === null ? 1 : -1;
      }
      const [x, y] = [texts.get(a), texts.get(b)];
      const [none, nothing] = [!x || x === "–", !y || y === "–"];
      return none || nothing ? none - nothing : way * words.compare(x, y);
    };
  };

  // The column below each heading, where headings may span rows and columns.
  const columnsOf = (head) => {
    const taken = [];
    const columns = new Map();
    [...head.rows].forEach((row, y) => {
      let x = 0;
      for (const cell of row.cells) {
        while (taken[y]?.[x]) x += 1;
        if (cell.colSpan === 1) columns.set(cell, x);
        for (let below = y; below < y + cell.rowSpan; below += 1) {
          taken[below] ??= [];
          for (let right = x; right < x + cell.colSpan; right += 1) taken[below][right] = true;
        }
        x += cell.colSpan;
      }
    });
    return columns;
  };

  for (const table of document.querySelectorAll("table:not([data-order=fixed])")) {
    const bodies = [...table.tBodies].map((body) => {
      // A row that says more about the one above it goes where that goes; a heading stays.
      const lead = [...body.rows].filter((row) => row.matches(".block"));
      const rows = [...body.rows].filter((row) => !row.matches(".block, .aside"));
      const more = new Map(rows.map((row) => [row, []]));
      let last = null;
      for (const row of body.rows) {
        if (more.has(row)) last = row;
        else if (last && row.matches(".aside")) more.get(last).push(row);
      }
      return { body, lead, rows, more };
    });
    if (!table.tHead || !bodies.some(({ rows }) => rows.length > 1)) continue;
    const columns = columnsOf(table.tHead);
    let now = null;
    for (const [heading, column] of columns) {
      if (!heading.textContent.trim() || heading.querySelector("svg")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sorter";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        // Up, down, and back to the order of the model.
        const next = { null: "ascending", ascending: "descending", descending: null }[heading.getAttribute("aria-sort")];
        now?.removeAttribute("aria-sort");
        now = heading;
        if (next) heading.setAttribute("aria-sort", next);
        for (const { body, lead, rows, more } of bodies) {
          const order = next ? [...rows].sort(comparison(rows, column, next === "ascending" ? 1 : -1)) : rows;
          body.append(...lead, ...order.flatMap((row) => [row, ...more.get(row)]));
        }
      });
    }
    table.classList.add("sorts");
  }

  // Browsers that know this selector need no help: the style unfolds what is printed.
  if (!CSS.supports("selector(::details-content)")) {
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = [...document.querySelectorAll("details:not([open])")];
      for (const item of opened) item.open = true;
    });
    addEventListener("afterprint", () => {
      for (const item of opened) item.open = false;
      opened = [];
    });
  }
})();
